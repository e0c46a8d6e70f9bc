"""The exception family: one class for each stable error code of the core.

Every class derives from `ShmError` and from the built-in exception that a caller would catch
without knowing this package, so ``except FileNotFoundError`` works as well as
``except NotFoundError`` and ``except ShmError``.
"""

from __future__ import annotations

import builtins
import errno
from typing import Any, ClassVar

__all__ = [
    "AlreadyExistsError",
    "ClosedError",
    "CopyNeededError",
    "CorruptedError",
    "DeadlineViolationError",
    "EmptyError",
    "InvalidHandleError",
    "InvalidNameError",
    "InvalidOptionError",
    "InvalidSizeError",
    "IoError",
    "NotFoundError",
    "NotInheritedError",
    "NotSealedError",
    "OutOfBoundsError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "SchemaMismatchError",
    "SealedError",
    "SegmentBusyError",
    "ShmError",
    "StaleError",
    "TimeoutError",
    "TornError",
    "TruncatedError",
    "UnsupportedError",
    "VersionConflictError",
    "ViewsAliveError",
]


class ShmError(Exception):
    """Base of every exception of this package.

    Attributes:
        code: The stable code, the same in Rust, Elixir and Python; ``"error"`` on this base only.
        remedy: What to do about it.
        segment: The name of the segment (or file) it is about, or ``None``.
    """

    code: ClassVar[str] = "error"
    _errno: ClassVar[int | None] = None

    remedy: str
    segment: str | None

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        segment: str | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(message)
        self.remedy = remedy
        self.segment = segment
        system: object = self
        if isinstance(system, OSError):
            system.errno = errno if errno is not None else self._errno
            system.strerror = message

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{message}; {self.remedy}" if self.remedy else message

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments are lost by BaseException.__reduce__, and an error must survive
        # the way from a worker process to its parent.
        system: object = self
        number = system.errno if isinstance(system, OSError) else None
        return (_rebuild, (type(self), self.args[0], self.remedy, self.segment, number))


def _rebuild(
    cls: type[ShmError], message: str, remedy: str, segment: str | None, number: int | None
) -> ShmError:
    return cls(message, remedy=remedy, segment=segment, errno=number)


class AlreadyExistsError(ShmError, FileExistsError):
    """The name is taken."""

    code = "already_exists"
    _errno = errno.EEXIST


class NotFoundError(ShmError, FileNotFoundError):
    """No segment of that name is published in the namespace and directory."""

    code = "not_found"
    _errno = errno.ENOENT


class InvalidNameError(ShmError, ValueError):
    """A name, module or namespace breaks the naming rules."""

    code = "invalid_name"


class InvalidSizeError(ShmError, ValueError):
    """A capacity outside 4 KiB to 1 GiB, or not a multiple of the page size."""

    code = "invalid_size"


class InvalidOptionError(ShmError, ValueError):
    """An option has a value outside its range."""

    code = "invalid_option"


class InvalidHandleError(ShmError, ValueError):
    """A handle lacks a field, has an unknown one, or does not fit its segment."""

    code = "invalid_handle"


class VersionConflictError(ShmError, RuntimeError):
    """The writer overwrote the value in each of a bounded number of attempts to copy it."""

    code = "version_conflict"


class TornError(ShmError, RuntimeError):
    """The only slot holds half a value, and the writer that could complete it is dead."""

    code = "torn"


class EmptyError(ShmError, LookupError):
    """Nothing has been published yet."""

    code = "empty"


class PermissionDeniedError(ShmError, PermissionError):
    """The operating system refuses access."""

    code = "permission_denied"
    _errno = errno.EACCES


class ResourceExhaustedError(ShmError, MemoryError, OSError):
    """Memory, descriptors or a limit are used up. The message says needed and available."""

    code = "resource_exhausted"
    _errno = errno.ENOSPC


class DeadlineViolationError(ShmError, builtins.TimeoutError):
    """An operation took longer than its caller allowed."""

    code = "deadline_violation"
    _errno = errno.ETIMEDOUT


class IoError(ShmError, OSError):
    """Any other refusal of the operating system; ``errno`` is the system's own."""

    code = "io"
    _errno = errno.EIO


class SegmentBusyError(ShmError, BlockingIOError):
    """Another living writer holds the segment."""

    code = "segment_busy"
    _errno = errno.EBUSY


class OutOfBoundsError(ShmError, IndexError, ValueError):
    """An offset and a length do not fit; nothing was copied."""

    code = "out_of_bounds"


class CorruptedError(ShmError, OSError):
    """A structure in shared memory or in a file contradicts itself."""

    code = "corrupted"
    _errno = errno.EBADMSG


class TruncatedError(ShmError, EOFError):
    """The file was cut shorter than its header says."""

    code = "truncated"


class SealedError(ShmError, ValueError):
    """A sealed segment cannot be written."""

    code = "sealed"


class NotSealedError(ShmError, ValueError):
    """Only sealed segments are viewed without a copy."""

    code = "not_sealed"


class SchemaMismatchError(ShmError, TypeError):
    """The segment was made for another layout of the value."""

    code = "schema_mismatch"


class StaleError(ShmError, RuntimeError):
    """The value is older than ``max_age``."""

    code = "stale"


class TimeoutError(ShmError, builtins.TimeoutError):
    """Nothing happened within the time given."""

    code = "timeout"
    _errno = errno.ETIMEDOUT


class ClosedError(ShmError, ValueError, EOFError):
    """This object is closed, or the writer closed the segment and nothing newer will come."""

    code = "closed"


class UnsupportedError(ShmError, NotImplementedError, TypeError):
    """The segment, the platform or the kind of object cannot do that."""

    code = "unsupported"


class NotInheritedError(ShmError, RuntimeError):
    """The parent of this process mapped the segment with ``dont_fork``."""

    code = "not_inherited"


class ViewsAliveError(ShmError, BufferError):
    """Arrays, memoryviews or a loan still lie in the memory that would go away.

    Only Python can hold views, so the core has no such code.
    """

    code = "views_alive"


class CopyNeededError(ShmError, ValueError):
    """With ``copy=False``: this object cannot be had without a copy.

    Only Python makes such promises, so the core has no such code.
    """

    code = "copy_needed"


BY_CODE: dict[str, type[ShmError]] = {
    cls.code: cls
    for cls in (
        AlreadyExistsError,
        NotFoundError,
        InvalidNameError,
        InvalidSizeError,
        InvalidOptionError,
        InvalidHandleError,
        VersionConflictError,
        TornError,
        EmptyError,
        PermissionDeniedError,
        ResourceExhaustedError,
        DeadlineViolationError,
        IoError,
        SegmentBusyError,
        OutOfBoundsError,
        CorruptedError,
        TruncatedError,
        SealedError,
        NotSealedError,
        SchemaMismatchError,
        StaleError,
        TimeoutError,
        ClosedError,
        UnsupportedError,
        NotInheritedError,
        ViewsAliveError,
        CopyNeededError,
    )
}
"""The class of each code; an unknown code (a newer core) falls back to `ShmError`."""
