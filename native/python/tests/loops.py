"""What the tests of waiting in event loops have in common."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from conftest import PATIENCE
from snakepit_shm import _async

T = TypeVar("T")

WAITER = "shm-notifier"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it in a loop of its own, within the patience of tests."""

    async def bounded() -> T:
        async with asyncio.timeout(PATIENCE):
            return await coroutine

    return asyncio.run(bounded())


def threads(name: str | None = None) -> int:
    """How many threads this process has, of one name."""
    count = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            count += name is None or (task / "comm").read_text().strip() == name
    return count


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def waiting(task: asyncio.Task[Any]) -> None:
    """Wait until a task sleeps in the notifier."""
    loop = asyncio.get_running_loop()
    while not (hub := _async._hubs.get(loop)) or not hub._waiting:
        assert not task.done(), task
        await asyncio.sleep(0)
