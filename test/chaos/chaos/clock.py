"""The time that the machine gave us: without spans in which the orchestrator itself did not run.

A virtual machine that is paused, say, stops everybody at once for seconds; nobody can keep a
promise about time meanwhile, and nobody is hung.
"""

from __future__ import annotations

import time

FROZEN = 2.0
"""A tick takes a tenth of this."""


class Clock:
    """Seconds since some moment, but for those in which nobody ran."""

    def __init__(self) -> None:
        self.lost = 0.0
        self.ticked = time.monotonic()

    def now(self) -> float:
        """The time, in seconds."""
        return time.monotonic() - self.lost

    def tick(self) -> tuple[int, int] | None:
        """To be called all the time: the span that was lost, in CLOCK_MONOTONIC nanoseconds."""
        before, self.ticked = self.ticked, time.monotonic()
        gap = self.ticked - before
        if gap < FROZEN:
            return None
        self.lost += gap
        return int(before * 1e9), int(self.ticked * 1e9)


CLOCK = Clock()
