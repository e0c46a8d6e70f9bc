"""Functions that make, find and remove segments: keyword arguments for the native ones."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

from . import _native
from ._errors import ClosedError, InvalidSizeError, ShmError
from ._native import Reader, Writer
from ._types import Capabilities, CleanupItem, CleanupReport, SegmentInfo

_Open = TypeVar("_Open", Reader, Writer)

# What is open, to be closed when the interpreter ends: nothing is left behind then.
_opened: dict[int, weakref.ref[Reader | Writer]] = {}
"""By id, until they die. No WeakSet: those cannot be listed while other threads open and drop."""
_opening: set[int] = set()
"""Threads that are about to open something."""
_ending = False
"""Whether that has begun."""
_PATIENCE = 1.0
"""Seconds at exit for those of other threads that are on their way: microseconds as a rule."""

StrPath = str | os.PathLike[str]

HugePages: TypeAlias = bool | Literal["prefer", "require"]
Numa: TypeAlias = int | Sequence[int] | Literal["interleave"] | tuple[str, Sequence[int]]

MIN_CAPACITY = 4096
"""The smallest capacity in bytes."""
MAX_CAPACITY = 1 << 30
"""The largest capacity in bytes."""


def create(
    name: str,
    size: int,
    *,
    namespace: str | None = None,
    dir: StrPath | None = None,
    module: str | None = None,
    slots: int | None = None,
    max_readers: int | None = None,
    mode: Literal["real_time", "simulation"] | None = None,
    reserve: Literal["eager", "lazy"] | None = None,
    lock_memory: bool | None = None,
    huge_pages: HugePages | None = None,
    prefault: bool | None = None,
    numa: Numa | None = None,
    numa_node: int | None = None,
    dont_fork: bool | None = None,
    integrity: Literal["none", "crc32c"] | None = None,
    notify: bool | None = None,
    timestamps: Literal["off", "coarse", "precise"] | None = None,
    schema_id: int | None = None,
    permissions: int | None = None,
) -> Writer:
    """Create a segment and become its writer.

    Args:
        name: 1 to 128 of ``A-Z a-z 0-9 . _ -``, no leading dot.
        size: The most bytes that a value can have: 4096 to 2**30, a multiple of the page size
            (`round_up_capacity` makes one).
        namespace: Where the name is unique; default ``$SNAKEPIT_SHM_NAMESPACE``, else
            ``"snakepit"``.
        dir: Directory of the namespace's files; default ``$SNAKEPIT_SHM_DIR``, else ``/dev/shm``.
        module: Part of the file's name, for people.
        slots: Values kept, 1 to 64. With two or more, a complete value always exists.
        max_readers: Room in the reader table.
        mode: ``"simulation"`` does without what needs privileges or prompt death notice.
        reserve: ``"lazy"`` leaves pages to be found at the first write.
        lock_memory: Keep the pages in memory (mlock).
        huge_pages: ``"prefer"`` takes as many huge pages as there are, and `inspect` with
            ``pages=True`` says how many; ``"require"`` or ``True`` refuses to do with less.
        prefault: Map the pages now, in one go; pays when all of a large segment is written soon.
        numa: Node or nodes that the pages come from; ``"interleave"`` takes those of all nodes in
            turns, ``("interleave", nodes)`` those of some.
        numa_node: The same as ``numa`` with one node.
        dont_fork: Forked children do not get the mapping; what they do with it raises
            `NotInheritedError`, and arrays of it read zeros there.
        integrity: ``"crc32c"`` checks every value that is read.
        notify: Whether `Reader.wait` can sleep on it.
        timestamps: Clock of the values' timestamps.
        schema_id: 64 bits that a reader may demand.
        permissions: Mode of the segment's file, such as ``0o640``.

    An option left out (or ``None``) has the core's default.

    Raises:
        AlreadyExistsError: The name is taken.
        InvalidNameError: The name breaks the rules.
        InvalidSizeError: The size does; the message says the nearest valid one.
        InvalidOptionError: An option is out of its range, or this machine cannot do what it asks.
        ResourceExhaustedError: ``/dev/shm`` is full, or memory cannot be locked or is not to be had
            in huge pages; the message says how much is missing.
    """
    options = {
        "namespace": namespace,
        "dir": dir,
        "module": module,
        "slots": slots,
        "max_readers": max_readers,
        "mode": mode,
        "reserve": reserve,
        "lock_memory": lock_memory,
        "huge_pages": huge_pages,
        "prefault": prefault,
        "numa": numa,
        "numa_node": numa_node,
        "dont_fork": dont_fork,
        "integrity": integrity,
        "notify": notify,
        "timestamps": timestamps,
        "schema_id": schema_id,
        "permissions": permissions,
    }
    if isinstance(size, int) and not 0 <= size <= sys.maxsize:
        nearest = MIN_CAPACITY if size < 0 else MAX_CAPACITY
        raise InvalidSizeError(
            f"invalid segment size: {size} bytes (must be {MIN_CAPACITY}..={MAX_CAPACITY}; "
            f"nearest valid: {nearest})",
            remedy=f"ask for {nearest} bytes",
        )
    return _open(_native.create, name, size, options)


def create_pooled(name: str, size: int, **options: Any) -> Writer:
    """`create` in memory of this process's pool, of valid size and with options of `create`."""
    return _open(_native.create, name, size, {**options, "pooled": True})


def attach(
    name: str,
    *,
    namespace: str | None = None,
    dir: StrPath | None = None,
    lock_memory: bool | None = None,
    prefault: bool | None = None,
    dont_fork: bool | None = None,
    schema_id: int | None = None,
) -> Reader:
    """Attach to a segment to read it.

    Args:
        name: The segment, by its exact name.
        namespace: As in `create`.
        dir: As in `create`.
        lock_memory: Keep the pages in memory (mlock) while this process is attached.
        prefault: Map all pages that are there now, in one go, rather than each when it is read.
        dont_fork: As in `create`.
        schema_id: Refuse a segment that was created with another one.

    Raises:
        NotFoundError: There is none of that name.
        PermissionDeniedError: The operating system refuses.
        CorruptedError: What lies there is no segment.
        TruncatedError: Its file was cut.
        SchemaMismatchError: It holds another layout.
    """
    options = {
        "namespace": namespace,
        "dir": dir,
        "lock_memory": lock_memory,
        "prefault": prefault,
        "dont_fork": dont_fork,
        "schema_id": schema_id,
    }
    return _open(_native.attach, name, options)


def attach_writer(
    name: str,
    *,
    namespace: str | None = None,
    dir: StrPath | None = None,
    lock_memory: bool | None = None,
    prefault: bool | None = None,
    dont_fork: bool | None = None,
    schema_id: int | None = None,
) -> Writer:
    """Take over a segment whose writer has gone. Versions go on where it stopped.

    Raises:
        SegmentBusyError: Its writer lives.
        SealedError: It can have no writer any more.
        NotFoundError, PermissionDeniedError, CorruptedError, SchemaMismatchError: As in `attach`.
    """
    options = {
        "namespace": namespace,
        "dir": dir,
        "lock_memory": lock_memory,
        "prefault": prefault,
        "dont_fork": dont_fork,
        "schema_id": schema_id,
    }
    return _open(_native.attach_writer, name, options)


def list_segments(*, namespace: str | None = None, dir: StrPath | None = None) -> list[SegmentInfo]:
    """Every segment of a namespace."""
    found = _native.list_segments(namespace, dir)
    return [SegmentInfo(**fields) for fields in found]


def inspect(
    name: str, *, pages: bool = False, namespace: str | None = None, dir: StrPath | None = None
) -> dict[str, Any]:
    """The header of a segment, for people and monitoring.

    Args:
        name: The segment.
        pages: Also how the memory under it is backed, as ``"pages"``: bytes that are ``resident``,
            in ``huge`` pages, by NUMA node. Slow: all of it is mapped for a moment.
        namespace: As in `create`.
        dir: As in `create`.
    """
    place = {"namespace": namespace, "dir": dir}
    report: dict[str, Any] = json.loads(_native.inspect(name, place))
    if pages:
        report["pages"] = json.loads(_native.inspect_pages(name, place))
    return report


def capabilities(dir: StrPath | None = None) -> Capabilities:
    """What this machine gives in a directory. Leaves nothing there.

    Args:
        dir: As in `create`.
    """
    found: dict[str, Any] = json.loads(_native.capabilities(dir))
    return Capabilities(**{**found, "numa_nodes": tuple(found["numa_nodes"])})


def cleanup(
    *,
    grace: float | None = None,
    min_age: float | None = None,
    module: str | None = None,
    pattern: str | None = None,
    dry_run: bool = False,
    corrupted: bool = False,
    namespace: str | None = None,
    dir: StrPath | None = None,
) -> CleanupReport:
    """Remove what nobody uses. A segment that a living process uses is never touched.

    Args:
        grace: Seconds that a crashed writer's segment waits for another to take over; 10 unless
            given.
        min_age: Only segments that were created at least that many seconds ago.
        module: Only segments of this module.
        pattern: Only segments whose whole name matches: ``*`` any characters, ``?`` one.
        dry_run: Only look; `CleanupReport.removed` says what would be.
        corrupted: Also remove what nobody can attach to, whatever the filters say of it.
        namespace: As in `create`.
        dir: As in `create`.
    """
    removed, kept, broken, recovered, cleared = _native.cleanup(
        namespace=namespace,
        directory=dir,
        grace=grace,
        min_age=min_age,
        module=module,
        pattern=pattern,
        dry_run=dry_run,
        corrupted=corrupted,
    )
    return CleanupReport(
        removed=[CleanupItem(*item) for item in removed],
        kept=[CleanupItem(*item) for item in kept],
        corrupted=[CleanupItem(*item) for item in broken],
        recovered=recovered,
        cleared_readers=cleared,
    )


def remove(name: str, *, namespace: str | None = None, dir: StrPath | None = None) -> None:
    """Remove a segment by name, whoever wrote it. Who is attached keeps what is mapped.

    Raises:
        NotFoundError: There is none of that name.
    """
    _native.remove(name, {"namespace": namespace, "dir": dir})


def _open(make: Callable[..., _Open], *arguments: Any) -> _Open:
    """Make a reader or a writer, and see to it that it is closed at exit."""
    thread = threading.get_ident()
    # First this, then the look: whoever ends the interpreter says so, then looks who is here. One
    # of the two sees the other, so that nothing is begun that would not be finished.
    _opening.add(thread)
    try:
        if _is_ended():
            raise _ended("nothing is opened any more")
        opened = make(*arguments)
        key = id(opened)
        # Called before the memory, and with it the id, can be another's.
        _opened[key] = weakref.ref(opened, lambda _: _opened.pop(key, None))
    finally:
        _opening.discard(thread)
    if _is_ended():  # it took longer than anybody waits
        with contextlib.suppress(ShmError):
            _native.close_at_exit(opened)
        raise _ended(f"segment {opened.name} was closed at once")
    return opened


def _is_ended() -> bool:
    return _ending and threading.current_thread() is not threading.main_thread()


def _ended(what: str) -> ClosedError:
    return ClosedError(
        f"{what}: the interpreter is ending", remedy="end threads before the interpreter ends"
    )


def _still_open() -> list[Reader | Writer]:
    """Readers first, so that a writer that closes finds its segment unused."""
    left = [opened for look in list(_opened.values()) if (opened := look()) is not None]
    return sorted(left, key=lambda opened: isinstance(opened, Writer))


def _close_all() -> None:
    """At exit: readers first, so that a writer that closes finds its segment unused.

    Daemon threads go on meanwhile. What they open from here on is closed by themselves, what they
    write is written when it is closed here, and what is kept is given back when all is closed.
    """
    global _ending  # noqa: PLW0603
    _ending = True
    patience = time.monotonic() + _PATIENCE
    while _opening - {threading.get_ident()} and time.monotonic() < patience:
        time.sleep(0.0005)
    for opened in _still_open():
        # What cannot be closed goes with the process, and its files with the next cleanup.
        with contextlib.suppress(ShmError):
            _native.close_at_exit(opened)
    _native.drain_pools()


def _forget_all() -> None:
    """In a forked child: what its parent opened is the parent's to close."""
    _opened.clear()
    _opening.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)
