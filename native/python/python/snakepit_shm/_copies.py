"""What was copied and what was not: counted for `copy_stats`, and logged."""

from __future__ import annotations

import logging
import threading
from typing import NamedTuple

_log = logging.getLogger("snakepit_shm")


class CopyStats(NamedTuple):
    """What `share` and `resolve` of this process copied since it began."""

    shared_in_place: int
    """Objects that were shared where they lay, see `empty`."""
    shared_copied: int
    """Objects that were copied into shared memory."""
    shared_copied_bytes: int
    resolved_in_place: int
    """Objects that lie in shared memory as they were resolved."""
    resolved_copied: int
    """Objects that were copied out of it, or converted."""
    resolved_copied_bytes: int
    """Bytes of the values that they were made of."""


_lock = threading.RLock()
_counts = dict.fromkeys(CopyStats._fields, 0)


def copy_stats() -> CopyStats:
    """What `share` and `resolve` copied. Each call also logs it, as ``snakepit_shm`` at DEBUG."""
    with _lock:
        return CopyStats(**_counts)


def shared(name: str, nbytes: int, why: str | None) -> None:
    """Note that an object was shared: copied for this reason, or in place."""
    _note("shared", name, nbytes, why)


def resolved(name: str, nbytes: int, why: str | None) -> None:
    """Note that an object was resolved: copied for this reason, or in place."""
    _note("resolved", name, nbytes, why)


def _note(what: str, name: str, nbytes: int, why: str | None) -> None:
    with _lock:
        if why is None:
            _counts[f"{what}_in_place"] += 1
        else:
            _counts[f"{what}_copied"] += 1
            _counts[f"{what}_copied_bytes"] += nbytes
    if why is None:
        _log.debug("%s %s in place (%d bytes)", what, name, nbytes)
    else:
        _log.debug("%s %s by a copy of %d bytes: %s", what, name, nbytes, why)


def forget_all() -> None:
    """In a forked child: a thread of the parent may have held the lock."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
