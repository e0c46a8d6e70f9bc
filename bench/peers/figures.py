"""Figures of the Python sections: the same files that the Rust sections write."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

QUICK = "--quick" in sys.argv
SIZES = [8, 64, 4096, 1 << 20] if QUICK else [
    8, 64, 1 << 10, 4 << 10, 64 << 10, 1 << 20, 16 << 20, 100 << 20, 1 << 30
]  # fmt: skip
Call = Callable[[], Any]


def human(size: int) -> str:
    """A size as a person writes it."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def batch(call: Call, times: int) -> float:
    """Nanoseconds of one of so many calls; one more goes before the clock."""
    call()
    start = time.perf_counter_ns()
    for _ in range(times):
        call()
    return (time.perf_counter_ns() - start) / times


def samples_for(size: int) -> int:
    """How many samples a size gets."""
    if QUICK:
        return 5
    return 15 if size < 16 << 20 else 5 if size < 1 << 30 else 2


def alternate(calls: list[Call], samples: int, batch_ns: float) -> list[list[float]]:
    """For each sample the nanoseconds of every call, all in turns."""
    first = batch(calls[0], 1)
    times = max(1, round(batch_ns / first))
    rounds = []
    for turn in range(samples):
        order = list(range(len(calls)))
        if turn % 2:
            order.reverse()
        taken = [0.0] * len(calls)
        for which in order:
            taken[which] = batch(calls[which], times)
        rounds.append(taken)
    return rounds


class Figures:
    """Collects figures, and what was not measured, and hands them on."""

    def __init__(self, section: str) -> None:
        self.section = section
        self.figures: list[dict[str, Any]] = []
        self.skipped: list[dict[str, str]] = []

    def add(
        self,
        what: str,
        name: str,
        size: int | None,
        peer: str,
        pairs: list[tuple[float, float]],
        unit: str = "ns",
        note: str = "",
    ) -> None:
        """One figure from pairs of ours and theirs."""
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = [a / b for a, b in pairs if b > 0]
        figure = {
            "id": f"peers/{self.section}/{what}{f'/{size}' if size else ''}/{peer}",
            "name": name,
            "size": size,
            "ours": ours,
            "unit": unit,
            "yardstick": {"name": peer, "value": theirs},
            "ratio": statistics.median(ratios) if ratios and unit != "count" else None,
            "hop_ns": None,
            "note": note,
        }
        ratio = "-" if figure["ratio"] is None else f"{figure['ratio']:.3f}"
        words = f"ours {ours:.1f}, theirs {theirs:.1f}, ratio {ratio} {note}"
        print(f"{figure['id']}: {words}", flush=True)
        self.figures.append(figure)

    def skip(self, what: str, reason: str) -> None:
        """Something that was not measured."""
        print(f"{what}: not measured: {reason}", flush=True)
        self.skipped.append({"what": what, "reason": reason})

    def save(self) -> None:
        """Writes both files, if anybody asked for them."""
        if parts := os.environ.get("SNAKEPIT_BENCH_PARTS"):
            for name, value in ((".json", self.figures), (".skipped.json", self.skipped)):
                Path(parts, self.section + name).write_text(json.dumps(value, indent=1))


def two_cpus() -> tuple[int, int]:
    """One for the writer, one for the reader: the same for the processes started from here on."""
    kept = "SNAKEPIT_BENCH_CPUS"
    if kept not in os.environ:
        first, second, *_ = sorted(os.sched_getaffinity(0))
        os.environ[kept] = f"{first} {second}"
    writer, reader = os.environ[kept].split()
    return int(writer), int(reader)
