"""The pool: memory of shared objects that were released, kept for those that come.

A fresh page of shared memory costs ten times as much as the copy into it. So `release` does not
give the memory of what this process shared back at once, and the next `share` of about the same
size takes it, pages and all. What others have resolved stays as it is; its memory waits for them.
"""

from __future__ import annotations

import json
from typing import Literal

from . import _native
from ._api import StrPath
from ._types import PoolStats


def configure_pool(
    *,
    namespace: str | None = None,
    dir: StrPath | None = None,
    max_idle_bytes: int | None = None,
    max_idle: int | None = None,
    idle_timeout: float | None = None,
    strategy: Literal["first_fit", "best_fit", "worst_fit"] | None = None,
    zero: Literal["never", "always"] | None = None,
) -> None:
    """Set what this process keeps of a namespace's memory. What is left out has the default.

    Args:
        namespace: As in `create`.
        dir: As in `create`.
        max_idle_bytes: Kept at most; 0 keeps nothing. Default 512 MiB.
        max_idle: Files kept at most. Default 256.
        idle_timeout: Seconds that memory is kept that nothing takes. Default 30.
        strategy: Which of the files that fit is taken: the one that became idle last, the shortest
            or the longest. Default ``"first_fit"``.
        zero: Whether memory is zeroed before it is used again. Default ``"never"``: readers never
            see more than the value, and all of it is this process's own.

    Raises:
        InvalidOptionError: A value is out of its range.
        InvalidNameError: The namespace breaks the rules.
    """
    _native.configure_pool(
        {
            "namespace": namespace,
            "dir": dir,
            "max_idle_bytes": max_idle_bytes,
            "max_idle": max_idle,
            "idle_timeout": idle_timeout,
            "strategy": strategy,
            "zero": zero,
        }
    )


def pool_stats(*, namespace: str | None = None, dir: StrPath | None = None) -> PoolStats:
    """What this process keeps of a namespace's memory, and what it did with it."""
    return PoolStats(**json.loads(_native.pool_stats(namespace, dir)))


def drain_pool(*, namespace: str | None = None, dir: StrPath | None = None) -> int:
    """Give back what is kept; return how many bytes that were. What is shared stays."""
    return _native.drain_pool(namespace, dir)
