"""Types of the native module. Import them from `snakepit_shm`."""

import builtins
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Self, final, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa  # type: ignore[import-untyped]
from typing_extensions import Buffer, CapsuleType

from ._async import Changes, Values
from ._types import ValueInfo

__version__: str

__all__ = [
    "Blank",
    "Loan",
    "Membership",
    "Notifier",
    "Pin",
    "PinnedView",
    "Reader",
    "View",
    "Writer",
    "__version__",
    "after_fork_in_child",
    "attach",
    "attach_writer",
    "capabilities",
    "cleanup",
    "close_at_exit",
    "configure_pool",
    "create",
    "drain_pool",
    "drain_pools",
    "error_codes",
    "inspect",
    "inspect_pages",
    "join",
    "list_segments",
    "open_handle",
    "place",
    "pool_stats",
    "read_many",
    "remove",
    "remove_handle",
    "round_up_capacity",
    "saw",
    "take_array",
    "take_bytes",
    "take_into",
    "timed_out",
    "write_many",
]

_Format = Literal["raw", "numpy", "arrow_ipc"]
_Shape = int | Sequence[int]
_StrPath = str | PathLike[str]
_Item = tuple[str, str, int]

@final
class Reader:
    """Reads a segment; made by `attach`. Safe to share between threads.

    Leaving its ``with`` block closes it.
    """

    @property
    def name(self) -> str:
        """The segment's name."""
    @property
    def capacity(self) -> int:
        """The most bytes that a value can have."""
    @property
    def version(self) -> int:
        """The version of the newest value; 0 while there is none."""
    @property
    def last_version(self) -> int:
        """The version that a read or wait of this object returned last; 0 before the first."""
    @property
    def generation(self) -> int:
        """How many writers the segment has had, the present one included."""
    @property
    def schema_id(self) -> int:
        """The schema id that the segment was created with."""
    @property
    def is_sealed(self) -> bool:
        """Whether the value can never change again."""
    @property
    def closed(self) -> bool:
        """Whether this object was closed."""
    def read(self, *, max_age: float | None = None) -> bytes:
        """A consistent copy of the value.

        Args:
            max_age: Raise `StaleError` for a value older than this many seconds.

        Raises:
            EmptyError: Nothing was published yet.
            VersionConflictError: The writer overwrote it in every attempt to copy it.
            CorruptedError: Its checksum does not fit.
            TruncatedError: The file was cut.
        """
    def read_into(self, buffer: Buffer) -> int:
        """Copy the value to the start of a writable, contiguous buffer; returns its length.

        One copy and no allocation; the GIL is kept. What lies behind the value stays as it is.

        Raises:
            OutOfBoundsError: The buffer is shorter than the value.
            BufferError: It is read-only or has gaps.
        """
    def read_next(self) -> tuple[bytes, int] | None:
        """The value after the last one read, and how many between the two were missed.

        ``None`` when there is nothing newer: then ``wait(reader.last_version)``. A segment with n
        slots holds the last n values, so a reader that is never more than n - 1 behind misses none.
        """
    def pin(self) -> Pin:
        """The value to look at in place while the writer goes on; release it soon.

        Of n slots n - 2 can be pinned at a time, by all readers together, and one by each reader.
        Beyond that the value is copied, which `Pin.in_place` tells; so it is by a forked child.

        Raises:
            EmptyError: Nothing was published yet.
            VersionConflictError: It had to be copied, and was overwritten in every attempt.
        """
    def read_range(self, offset: int, length: int) -> bytes:
        """A copy of ``length`` bytes of the value from ``offset`` on.

        Raises:
            OutOfBoundsError: The value does not reach that far.
        """
    def numpy(self) -> npt.NDArray[Any]:
        """The value as an array of the dtype and shape that its writer gave it.

        Sealed: read-only and in place, without a copy. Live: a consistent copy, yours to change.
        Plain bytes are one-dimensional uint8.
        """
    def memoryview(self) -> builtins.memoryview:
        """The value's bytes, read-only: in place when sealed, else a consistent copy."""
    def arrow(self) -> pa.Table:
        """The value as a pyarrow Table, in place when sealed.

        Raises:
            CorruptedError: It is no Arrow IPC stream.
            UnsupportedError: pyarrow is not installed.
        """
    def has_changed(self) -> bool:
        """Whether there is a newer value than the one a read or wait returned last."""
    def wait(self, since: int | None = None, timeout: float | None = None) -> int:
        """Sleep until there is a value newer than ``since``; returns its version.

        Sleeps in the kernel, without the GIL; Ctrl-C is answered within 0.1 s.

        Args:
            since: A version; default the one that a read or wait of this object returned last.
            timeout: Seconds; ``None`` waits for ever.

        Raises:
            TimeoutError: There was none in that time.
            ClosedError: The writer has closed the segment, or this reader was closed.
            SealedError: The segment was sealed: nothing newer will come.
            UnsupportedError: The segment was created without ``notify``.
        """
    def wait_async(
        self, since: int | None = None, timeout: float | None = None
    ) -> Coroutine[Any, Any, int]:
        """`wait` for event loops: ``version = await reader.wait_async()``.

        One thread of the process sleeps for up to 127 segments, whoever waits for them. May be
        cancelled. Needs a loop with ``add_reader``, as asyncio's have it on Linux.

        Args:
            since: As in `wait`.
            timeout: Seconds; ``None`` waits for ever. ``asyncio.timeout`` will do as well.

        Raises:
            ShmError: As `wait`; also `ResourceExhaustedError` without descriptors or threads.
        """
    def changes(
        self,
        *,
        every: bool = False,
        kind: Literal["bytes", "numpy"] = "bytes",
        into: Buffer | None = None,
        since: int = 0,
    ) -> Changes:
        """The values as they come: ``async for value in reader.changes()``.

        Begins with the value that is there. Ends when the segment is sealed or its writer closes
        it; the reader's own end raises `ClosedError`.

        Args:
            every: Each value in turn, as `read_next`, and not only the newest each time.
            kind: ``"numpy"`` for arrays.
            into: A writable buffer that each value is copied to; the values are memoryviews of its
                beginning, good until the next one.
            since: Leave out what is not newer than this version.

        Raises:
            InvalidOptionError: ``kind``, ``into`` or ``since`` together with ``every``, or ``into``
                with arrays.
        """
    def values(self, *, timeout: float | None = None) -> Values:
        """Every value in turn: ``for value in reader.values()``, waiting for the next.

        Begins and ends as `changes`. What was overwritten before it could be read is counted by
        ``missed`` of the iterator.

        Args:
            timeout: Seconds to wait for a value before `TimeoutError` is raised; the iterator can
                be used again.
        """
    def age(self) -> float:
        """Seconds since the value was published."""
    def info(self) -> ValueInfo:
        """What the value is, without its bytes."""
    def handle(self) -> dict[str, Any]:
        """The handle of the sealed value, for `resolve`.

        Raises:
            NotSealedError: It can still change.
        """
    def close(self) -> None:
        """Detach; waits of other threads and of event loops end. Twice does nothing.

        Raises:
            ViewsAliveError: Arrays or memoryviews over the value live; also a `BufferError`.
        """
    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]: ...
    def __dlpack__(self, **keywords: Any) -> CapsuleType: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def _repr_html_(self) -> str: ...
    def __len__(self) -> int:
        """Length of the present value in bytes; 0 while there is none."""
    def __bool__(self) -> Literal[True]: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        _error: BaseException | None = None,
        _traceback: TracebackType | None = None,
    ) -> None: ...

@final
class Writer:
    """Writes a segment; made by `create` or `attach_writer`. Threads take turns.

    Leaving its ``with`` block closes it.
    """

    @property
    def name(self) -> str:
        """The segment's name."""
    @property
    def capacity(self) -> int:
        """The most bytes that a value can have."""
    @property
    def version(self) -> int:
        """The version published last; 0 before the first."""
    @property
    def generation(self) -> int:
        """How many writers the segment has had, this one included."""
    @property
    def closed(self) -> bool:
        """Whether this object was closed or released."""
    def write(
        self,
        data: Buffer | npt.NDArray[Any] | np.generic,
        *,
        dtype: npt.DTypeLike | None = None,
        shape: _Shape | None = None,
        order: Literal["C", "F"] | None = None,
    ) -> int:
        """Publish a value; returns its version. One copy, straight into shared memory.

        An array is published with its dtype and shape, any other buffer as plain bytes. From
        256 KiB on the copy runs without the GIL.

        Args:
            data: An array of any layout, or any object with a buffer.
            dtype: Tell readers this dtype instead; with ``shape``.
            shape: Tell readers this shape instead; with ``dtype``.
            order: And that the bytes are the array in this order; default ``"C"``.

        Raises:
            OutOfBoundsError: It has no bytes, or more than ``capacity``.
            UnsupportedError: Its dtype is no plain one, or it has more than six dimensions.
            SealedError: The segment was sealed.
            ViewsAliveError: A loan is under way.
        """
    def write_at(self, offset: int, data: Buffer | npt.NDArray[Any] | np.generic) -> int:
        """Publish the previous value with ``data`` at ``offset``; returns the new version.

        The value grows where the patch reaches beyond its end.
        """
    def loan(
        self,
        shape: _Shape | None = None,
        dtype: npt.DTypeLike | None = None,
        *,
        format: _Format | None = None,
    ) -> Loan:
        """The next slot itself, as an array to fill in place: no copy at all.

        ``with writer.loan((480, 640), "f4") as array: array[:] = ...`` publishes when the block
        ends, and drops what was written when it ends with an exception. The slot holds an older
        value at first. Afterwards the array can no longer be written; do not keep writable views
        of it (slices made inside the block): the slot will hold other values.

        Args:
            shape: Of the array; without a dtype a number of bytes. Default: all of the capacity.
            dtype: Of the array; without one the value is plain bytes.
            format: ``"arrow_ipc"`` for bytes that are an Arrow IPC stream.
        """
    def flush(self) -> None:
        """Make what was published visible to readers of the file; memory needs none."""
    def seal(self) -> None:
        """Make the present value the last one, for ever: readers then take it without a copy.

        Raises:
            EmptyError: Nothing was published yet.
        """
    def numpy(self) -> npt.NDArray[Any]:
        """The sealed value as a read-only array, in place.

        Raises:
            NotSealedError: It can still change.
        """
    def memoryview(self) -> builtins.memoryview:
        """The sealed value's bytes as a read-only memoryview, in place."""
    def handle(self) -> dict[str, Any]:
        """The handle of the sealed value, for `resolve`."""
    def close(self) -> None:
        """Give the segment up: it goes when its last reader has gone. Twice does nothing.

        Raises:
            ViewsAliveError: Arrays over its memory live, or a loan is under way; also a
                `BufferError`.
        """
    def release(self) -> None:
        """Give the claim back and leave the segment, to be read and taken over."""
    def give_away(self, ttl: float) -> None:
        """Give a sealed segment away: whoever has its handle may take it, or release it.

        If nobody has in ``ttl`` seconds, it is removed by whoever cleans up next. What is mapped
        stays: arrays in its slots and views of it may live on.

        Raises:
            NotSealedError: It can still change.
            InvalidOptionError: ``ttl`` is not above 0, or more than seven days.
        """
    def _leave(self) -> None: ...
    @property
    def _incarnation(self) -> str: ...
    def _retire(self) -> bool: ...
    def _repr_html_(self) -> str: ...
    def _discard(self) -> None: ...
    def _write_nothing(
        self, dtype: npt.DTypeLike | None = None, shape: _Shape | None = None
    ) -> int: ...
    def _blank(self, shape: _Shape, dtype: npt.DTypeLike, order: str) -> Blank: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        _error: BaseException | None = None,
        _traceback: TracebackType | None = None,
    ) -> None: ...

@final
class Loan:
    """A slot to fill in place; made by `Writer.loan`, good for one ``with`` block."""

    @property
    def version(self) -> int:
        """The version that the value was published as; 0 before that."""
    def __enter__(self) -> npt.NDArray[Any]: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        _error: BaseException | None = None,
        _traceback: TracebackType | None = None,
    ) -> None: ...

@final
class Pin:
    """A value that stays as it is; made by `Reader.pin`. Leaving its ``with`` block releases it."""

    @property
    def segment(self) -> str:
        """The segment's name."""
    @property
    def version(self) -> int:
        """The value's version."""
    @property
    def in_place(self) -> bool:
        """Whether these are the segment's own bytes; false when they had to be copied."""
    @property
    def is_intact(self) -> bool:
        """Whether the bytes have stayed as they were until now."""
    def numpy(self) -> npt.NDArray[Any]:
        """A read-only array over the value; it keeps the pin."""
    def memoryview(self) -> builtins.memoryview:
        """A read-only memoryview over the value's bytes; it keeps the pin."""
    def release(self) -> None:
        """Give the pin back; a second time does nothing.

        Raises:
            ViewsAliveError: An array over it is still alive.
            VersionConflictError: The slot was taken against the rule; what was read may be wrong.
            TruncatedError: The file was cut.
        """
    def _repr_html_(self) -> str: ...
    def __len__(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        _error: BaseException | None = None,
        _traceback: TracebackType | None = None,
    ) -> None: ...

@final
class PinnedView:
    """What arrays over a pinned value keep alive."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...

@final
class Blank:
    """What arrays over memory that is to be shared keep alive; made by `empty`."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def seal(self, dtype: npt.DTypeLike, shape: _Shape, order: str) -> None: ...

@final
class View:
    """The value of a sealed segment, in place; what arrays over it keep alive."""

    @property
    def segment(self) -> str: ...
    @property
    def format(self) -> _Format: ...
    @property
    def place(self) -> tuple[int, int]: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def numpy(self) -> npt.NDArray[Any]: ...
    def memoryview(self) -> builtins.memoryview: ...

@final
class Notifier:
    """Tells one event loop of changes in any number of segments."""

    def __new__(cls) -> Self: ...
    def fileno(self) -> int: ...
    def watch(self, reader: Reader, since: int) -> tuple[bool, int]: ...
    def cancel(self, token: int) -> None: ...
    def take(self) -> list[tuple[int, int | Exception]]: ...

def saw(reader: Reader, version: int) -> None: ...
def timed_out(reader: Reader, since: int, after: float) -> int: ...
def take_bytes(reader: Reader) -> tuple[bytes, int]: ...
def take_into(reader: Reader, buffer: Buffer) -> tuple[int, int]: ...
def take_array(reader: Reader) -> tuple[npt.NDArray[Any], int]: ...
def create(name: str, size: int, given: Mapping[str, Any]) -> Writer: ...
def attach(name: str, given: Mapping[str, Any]) -> Reader: ...
def attach_writer(name: str, given: Mapping[str, Any]) -> Writer: ...
def place(namespace: str | None = None, directory: _StrPath | None = None) -> tuple[str, str]: ...
def inspect(name: str, given: Mapping[str, Any]) -> str: ...
def inspect_pages(name: str, given: Mapping[str, Any]) -> str: ...
def capabilities(directory: str | PathLike[str] | None = None) -> str: ...
def remove(name: str, given: Mapping[str, Any]) -> None: ...
def list_segments(
    namespace: str | None = None, directory: _StrPath | None = None
) -> list[dict[str, Any]]: ...
def cleanup(
    *,
    namespace: str | None,
    directory: _StrPath | None,
    grace: float | None,
    min_age: float | None,
    module: str | None,
    pattern: str | None,
    dry_run: bool,
    corrupted: bool,
) -> tuple[list[_Item], list[_Item], list[_Item], list[str], int]: ...
def open_handle(json: str, directory: _StrPath | None = None) -> tuple[View, str | None]: ...
def remove_handle(json: str, directory: _StrPath | None = None) -> bool: ...
@overload
def read_many(
    readers: Iterable[Reader], *, return_exceptions: Literal[False] = False
) -> list[bytes]: ...
@overload
def read_many(readers: Iterable[Reader], *, return_exceptions: bool) -> list[bytes | Exception]:
    """Copies of the values of many readers, in order: ``Reader.read`` of each, in one call.

    From 256 KiB on a value is copied without the GIL.

    Args:
        readers: Any number of them, one also several times.
        return_exceptions: Put what went wrong in its place in the list, instead of raising the
            first of it.

    Raises:
        ShmError: As ``Reader.read``.
        TypeError: For what is no reader.
    """

@overload
def write_many(
    values: Iterable[tuple[Writer, Buffer | npt.NDArray[Any] | np.generic]],
    *,
    return_exceptions: Literal[False] = False,
) -> list[int]: ...
@overload
def write_many(
    values: Iterable[tuple[Writer, Buffer | npt.NDArray[Any] | np.generic]],
    *,
    return_exceptions: bool,
) -> list[int | Exception]:
    """Publish a value by each of many writers, in order; returns their versions.

    ``Writer.write`` of each, in one call: arrays go with their dtype and shape, and from 256 KiB on
    a value is copied without the GIL.

    Args:
        values: Pairs of a writer and what it is to publish.
        return_exceptions: Put what went wrong in its place in the list and go on, instead of
            raising it; values before the one that is raised for are published.

    Raises:
        ShmError: As ``Writer.write``.
        TypeError: For what is no such pair.
    """

def round_up_capacity(nbytes: int) -> int:
    """The smallest valid capacity that holds ``nbytes`` bytes.

    Raises:
        InvalidSizeError: For 0 and for more than 1 GiB.
    """

def configure_pool(given: Mapping[str, Any]) -> None: ...
def pool_stats(namespace: str | None = None, directory: _StrPath | None = None) -> str: ...
def drain_pool(namespace: str | None = None, directory: _StrPath | None = None) -> int: ...
def drain_pools() -> None: ...

@final
class Membership:
    def leave(self) -> None: ...

def join(namespace: str | None = None, directory: _StrPath | None = None) -> Membership: ...
def close_at_exit(object: Reader | Writer) -> None: ...
def error_codes() -> list[str]: ...
def after_fork_in_child() -> None: ...
