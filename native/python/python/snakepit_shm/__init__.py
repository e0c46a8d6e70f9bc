"""Snakepit shared memory: named segments with one writer and many lock-free readers.

    import numpy as np, snakepit_shm

    handle = snakepit_shm.share(np.arange(6.0).reshape(2, 3))   # a dictionary, for any transport
    array = snakepit_shm.resolve(handle)                        # read-only, in place
    snakepit_shm.release(handle)

Live values: `create` a segment and `Writer.write`, `attach` to it elsewhere and `Reader.wait`.
Errors: `ShmError` and its subclasses, each also the built-in exception that fits.
"""

from __future__ import annotations

from ._api import (
    MAX_CAPACITY,
    MIN_CAPACITY,
    attach,
    attach_writer,
    capabilities,
    cleanup,
    create,
    inspect,
    list_segments,
    remove,
)
from ._borrow import Borrowed, borrow
from ._copies import CopyStats, copy_stats
from ._errors import (
    AlreadyExistsError,
    ClosedError,
    CopyNeededError,
    CorruptedError,
    DeadlineViolationError,
    EmptyError,
    InvalidHandleError,
    InvalidNameError,
    InvalidOptionError,
    InvalidSizeError,
    IoError,
    NotFoundError,
    NotInheritedError,
    NotSealedError,
    OutOfBoundsError,
    PermissionDeniedError,
    ResourceExhaustedError,
    SchemaMismatchError,
    SealedError,
    SegmentBusyError,
    ShmError,
    StaleError,
    TimeoutError,
    TornError,
    TruncatedError,
    UnsupportedError,
    VersionConflictError,
    ViewsAliveError,
)
from ._native import (
    Loan,
    Pin,
    Reader,
    Writer,
    __version__,
    read_many,
    round_up_capacity,
    write_many,
)
from ._pool import configure_pool, drain_pool, pool_stats
from ._share import empty, empty_like, release, resolve, share, zeros
from ._types import (
    Capabilities,
    CleanupItem,
    CleanupReport,
    PoolStats,
    SegmentInfo,
    ValueInfo,
)

__all__ = [
    "MAX_CAPACITY",
    "MIN_CAPACITY",
    "AlreadyExistsError",
    "Borrowed",
    "Capabilities",
    "CleanupItem",
    "CleanupReport",
    "ClosedError",
    "CopyNeededError",
    "CopyStats",
    "CorruptedError",
    "DeadlineViolationError",
    "EmptyError",
    "InvalidHandleError",
    "InvalidNameError",
    "InvalidOptionError",
    "InvalidSizeError",
    "IoError",
    "Loan",
    "NotFoundError",
    "NotInheritedError",
    "NotSealedError",
    "OutOfBoundsError",
    "PermissionDeniedError",
    "Pin",
    "PoolStats",
    "Reader",
    "ResourceExhaustedError",
    "SchemaMismatchError",
    "SealedError",
    "SegmentBusyError",
    "SegmentInfo",
    "ShmError",
    "StaleError",
    "TimeoutError",
    "TornError",
    "TruncatedError",
    "UnsupportedError",
    "ValueInfo",
    "VersionConflictError",
    "ViewsAliveError",
    "Writer",
    "__version__",
    "attach",
    "attach_writer",
    "borrow",
    "capabilities",
    "cleanup",
    "configure_pool",
    "copy_stats",
    "create",
    "drain_pool",
    "empty",
    "empty_like",
    "inspect",
    "list_segments",
    "pool_stats",
    "read_many",
    "release",
    "remove",
    "resolve",
    "round_up_capacity",
    "share",
    "write_many",
    "zeros",
]
