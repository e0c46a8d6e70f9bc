"""Plain records that the functions of this package return."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple


class ValueInfo(NamedTuple):
    """What a value is, without its bytes."""

    version: int
    """Its version: even, two more with every write."""
    nbytes: int
    """Its length in bytes."""
    timestamp_ns: int
    """When it was published, on the clock of `time.monotonic_ns`; 0 without timestamps."""
    format: Literal["raw", "numpy", "arrow_ipc"]
    """How its bytes are to be understood."""
    dtype: str
    """numpy's array-protocol string; empty unless the format is ``"numpy"``."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One segment as `list_segments` finds it."""

    name: str
    namespace: str
    module: str
    file: str
    """Name of the segment's file in the directory."""
    capacity: int
    """The most bytes that a value can have."""
    slots: int
    state: Literal["active", "sealed", "closed"]
    """Whether it can change: it has a writer, it never will, its writer has gone."""
    version: int
    generation: int
    """How many writers it has had."""
    nbytes: int
    """Length of the present value in bytes."""
    writer_pid: int
    reader_count: int
    created_at: datetime
    last_accessed: datetime

    def _repr_html_(self) -> str:
        """For notebooks."""
        from ._html import table

        facts = ((name, getattr(self, name)) for name in self.__slots__ if name != "name")
        return table("segment", self.name, facts)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a machine gives in a directory, each found out by trying it."""

    page_size: int
    space_total: int
    space_available: int
    huge_pages: str | None
    """The mount's ``huge=`` option; ``None`` without one."""
    huge_page_size: int
    """Bytes; 0 where the kernel has none."""
    shmem_enabled: str | None
    """The kernel's setting for all memory file systems."""
    huge_pages_possible: bool
    """Whether a segment that asks for huge pages gets them now, from the mount or the kernel."""
    numa_nodes: tuple[int, ...]
    """What ``numa`` may name."""
    unnamed_files: bool
    file_locks: bool
    process_descriptors: bool
    waits_for_many: bool
    """Whether the thread that waits for event loops can sleep (Linux 5.16); else it looks every
    millisecond."""


@dataclass(frozen=True, slots=True)
class CleanupItem:
    """A segment in a `CleanupReport`."""

    name: str
    reason: str
    """Why it was removed or left."""
    nbytes: int
    """Length of its file; 0 when it cannot be told."""


@dataclass(frozen=True, slots=True)
class CleanupReport:
    """What `cleanup` did."""

    removed: list[CleanupItem]
    """With ``dry_run``: what would have been."""
    kept: list[CleanupItem]
    corrupted: list[CleanupItem]
    """Segments that nobody can attach to."""
    recovered: list[str]
    """Segments whose lost metadata was found again."""
    cleared_readers: int
    """Entries of dead readers that were cleared."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What the pool keeps of a namespace's memory and did with it, see `pool_stats`."""

    idle: int
    """Files that are kept, those that somebody still reads included."""
    idle_bytes: int
    draining: int
    """Kept files that somebody still reads."""
    away: int
    """Files that were given away with their values (``share(transfer=True)``) and are expected back."""
    live: int
    """What is shared now lives in so many files of the pool."""
    live_bytes: int
    needed_bytes: int
    """Of these, what it needs."""
    reused: int
    """Objects that were shared in kept memory."""
    fresh: int
    """Objects that were shared in new memory."""
    removed: int
    """Kept files that were given back."""
    fragmentation: float
    """Part of the pool's memory that nothing needs, 0.0 to 1.0."""
