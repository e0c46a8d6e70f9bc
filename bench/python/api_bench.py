"""Times the Python API beside bare calls that move the same bytes.

Run by bench/run.sh. Ours and the yardstick alternate in short batches; each
pair of batches gives one ratio, and the median ratio is reported.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import snakepit_shm

QUICK = "SNAKEPIT_BENCH_QUICK" in os.environ
SAMPLES = 9 if QUICK else 41
BATCH_NS = 500_000 if QUICK else 4_000_000
BIG = 100_000_000
NAMESPACE = "bench"
MIN_CAPACITY = 4096

Call = Callable[[], Any]


def batch(call: Call, times: int) -> float:
    """Nanoseconds of one of `times` calls; one more goes before the clock."""
    call()
    start = time.perf_counter_ns()
    for _ in itertools.repeat(None, times):
        call()
    return (time.perf_counter_ns() - start) / times


def times_for(call: Call) -> int:
    """So many calls that they fill a batch."""
    return max(1, round(BATCH_NS / batch(call, 100)))


class Figures:
    """Collects figures and hands them on as bench/README.md says."""

    def __init__(self) -> None:
        self.figures: list[dict[str, Any]] = []

    def pair(self, what: str, size: int, ours: Call, yardstick: tuple[str, Call]) -> None:
        """Times two cheap calls."""
        name, yard = yardstick
        times = times_for(ours)
        samples = []
        for turn in range(SAMPLES):
            if turn % 2:
                sample = batch(ours, times), batch(yard, times)
            else:
                yard_ns = batch(yard, times)
                sample = batch(ours, times), yard_ns
            samples.append(sample)
        self.add(what, size, samples, name)

    def add(self, what: str, size: int, samples: list[tuple[float, float]], name: str) -> None:
        """Adds what the samples, each (ours, yardstick), come to; `name` is the yardstick's."""
        ours, yard = (statistics.median(column) for column in zip(*samples, strict=True))
        ratio = statistics.median(o / y for o, y in samples)
        print(f"{what}, {size} B: ours {ours:.0f} ns, {name} {yard:.0f} ns, ratio {ratio:.3g}")
        self.figures.append(
            {
                "id": f"python/{what}/{size}",
                "name": f"Python {what}",
                "size": size,
                "ours": ours,
                "unit": "ns",
                "yardstick": {"name": name, "value": yard},
                "ratio": ratio,
            }
        )

    def save(self) -> None:
        """Writes them where bench/run.sh looks for them, if it was that."""
        if parts := os.environ.get("SNAKEPIT_BENCH_PARTS"):
            pathlib.Path(parts, "python.json").write_text(json.dumps(self.figures, indent=1))


def memmove(size: int) -> Call:
    """The yardstick: one ctypes call that copies `size` warm bytes."""
    source, target = (ctypes.create_string_buffer(size) for _ in range(2))
    move = ctypes.memmove
    return lambda: move(target, source, size)


def small(figures: Figures, where: dict[str, str], size: int) -> None:
    """Calls on one segment of a few bytes, held open."""
    data = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8).tobytes()
    buffer = bytearray(size)
    copy = ("ctypes memmove", memmove(size))
    make = ("bytes(bytearray)", lambda: bytes(buffer))
    view = ("np.frombuffer", lambda: np.frombuffer(buffer, np.uint8))
    name = f"small-{size}"
    with (
        snakepit_shm.create(name, max(size, MIN_CAPACITY), **where) as writer,
        snakepit_shm.attach(name, **where) as reader,
    ):
        writer.write(data)
        reader.read_into(buffer)
        assert buffer == data and reader.read() == data, "the read did not bring the value"
        figures.pair("read_into", size, lambda: reader.read_into(buffer), copy)
        figures.pair("read", size, lambda: reader.read(), make)
        figures.pair("write", size, lambda: writer.write(data), copy)
        assert reader.read() == data, "the write did not bring the value"
        writer.seal()
        assert bytes(reader.numpy()) == data, "the view does not show the value"
        figures.pair("numpy", size, lambda: reader.numpy(), view)


def big(figures: Figures, where: dict[str, str]) -> None:
    """A hundred megabytes shared and resolved, in the steady state."""
    value = np.arange(BIG // 4, dtype=np.float32)
    target = np.zeros_like(value)
    shared, resolved = [], []
    for turn in range(SAMPLES // 2 + 1):
        start = time.perf_counter_ns()
        handle = snakepit_shm.share(value, **where)
        shared_ns = time.perf_counter_ns() - start
        start = time.perf_counter_ns()
        view = snakepit_shm.resolve(handle, dir=where["dir"])
        resolved_ns = time.perf_counter_ns() - start
        if turn == 0:
            assert np.array_equal(view, value), "the resolved array is another one"
        del view
        snakepit_shm.release(handle, dir=where["dir"])
        np.copyto(target, value)
        start = time.perf_counter_ns()
        np.copyto(target, value)
        copy_ns = time.perf_counter_ns() - start
        if turn > 0:  # the first one made the pages
            shared.append((shared_ns, copy_ns))
            resolved.append((resolved_ns, copy_ns))
    assert np.array_equal(target, value)
    figures.add("share", BIG, shared, "numpy copyto, warm")
    figures.add("resolve", BIG, resolved, "numpy copyto, warm")


def main() -> None:
    """Times everything in a directory of its own."""
    cpus = os.sched_getaffinity(0)
    figures = Figures()
    parent = os.environ.get("SNAKEPIT_BENCH_DIR", "/dev/shm")
    with tempfile.TemporaryDirectory(prefix="snakepit-bench-", dir=parent) as directory:
        where = {"namespace": NAMESPACE, "dir": directory}
        os.sched_setaffinity(0, {max(cpus)})
        for size in (64, 4096):
            small(figures, where, size)
        # What runs in the background (giving memory back) is to have a CPU of its own.
        os.sched_setaffinity(0, cpus)
        big(figures, where)
    figures.save()


if __name__ == "__main__":
    sys.exit(main())
