"""multiprocessing.shared_memory beside our Python API.

It is bare memory with a name: nobody is kept from reading half a value, its tracker removes the
object when the process that made it ends, and who reads can write. Attached with `track=False`
where Python has that (3.13), otherwise with the tracker told to forget it, as its users do.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import snakepit_shm
from figures import QUICK, SIZES, Figures, alternate, human, samples_for, two_cpus

PEER = "multiprocessing.shared_memory"
KINDS = 3
COUNTS = [1, 100] if QUICK else [1, 100, 10_000]
SECONDS = 0.1 if QUICK else 0.4
DIRECTORY = os.environ.get("SNAKEPIT_BENCH_DIR", "/dev/shm")
PREFIX = f"{Path(DIRECTORY).name}-py{secrets.token_hex(3)}"
WHERE = {"namespace": "bench", "dir": DIRECTORY}


def create(name: str, size: int) -> shared_memory.SharedMemory:
    """A new object."""
    return shared_memory.SharedMemory(name=name, create=True, size=size)


def attach(name: str) -> shared_memory.SharedMemory:
    """An object that somebody else made and will remove."""
    if sys.version_info >= (3, 13):
        return shared_memory.SharedMemory(name=name, track=False)
    held = shared_memory.SharedMemory(name=name)
    resource_tracker.unregister(held._name, "shared_memory")  # type: ignore[attr-defined]
    return held


def values(size: int) -> list[bytes]:
    """Values of which each word is the value's number: a mixture of two shows."""
    count = KINDS if size < 100 << 20 else 1
    return [np.full(size // 8, number + 1, np.uint64).tobytes() for number in range(count)]


def one_process(figures: Figures, size: int) -> None:
    """Writes and reads in one thread."""
    data = values(size)[0]
    into, mine = bytearray(size), f"{PREFIX}-one-{size}"
    theirs = create(mine, size)
    room = max(4096, (size + 4095) // 4096 * 4096)
    try:
        with (
            snakepit_shm.create(f"one-{size}", room, **WHERE) as writer,
            snakepit_shm.attach(f"one-{size}", **WHERE) as reader,
        ):
            buffer = theirs.buf

            def put() -> None:
                buffer[:size] = data

            target = memoryview(into)

            def take() -> None:
                # Into a view: a bytearray would make a copy of its own first.
                target[:] = buffer[:size]

            writer.write(data)
            put()
            for what, name, ours, peer in (
                ("write", "write", lambda: writer.write(data), put),
                ("read_into", "read into a buffer", lambda: reader.read_into(into), take),
                ("read", "read as bytes", lambda: reader.read(), lambda: bytes(buffer[:size])),
            ):
                pairs = alternate([ours, peer], samples_for(size), 2e6)
                figures.add(what, name, size, PEER, [(a, b) for a, b in pairs])
            assert reader.read() == data and bytes(buffer[:size]) == data
    finally:
        theirs.close()
        theirs.unlink()


def writer_process(kind: str, name: str, size: int, seconds: float) -> None:
    """The other process: makes it, says so, and writes flat out each time it is told to."""
    os.sched_setaffinity(0, {two_cpus()[0]})
    data = values(size)
    write: Callable[[bytes], Any]
    if kind == "ours":
        writer = snakepit_shm.create(name, max(4096, size), **WHERE)
        write, close = writer.write, writer.close
    else:
        held = create(name, size)
        buffer = held.buf

        def write(value: bytes) -> None:
            buffer[:size] = value

        def close() -> None:
            nonlocal buffer
            del buffer
            held.close()
            held.unlink()

    write(data[0])
    print("ready", flush=True)
    for _ in sys.stdin:
        print("going", flush=True)
        end = time.perf_counter() + seconds
        count = 0
        while time.perf_counter() < end:
            write(data[count % len(data)])
            count += 1
        print(count, flush=True)
    close()


def two_processes(figures: Figures, size: int) -> None:
    """A reader beside a flat-out writer: how many values, how long each, how many torn."""
    found = {}
    for kind in ("ours", "theirs"):
        name = f"{PREFIX}-two-{kind}-{size}".replace("_", "-")
        command = [sys.executable, __file__, "--writer", kind, name, str(size), str(SECONDS)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdin and child.stdout
            assert child.stdout.readline() == "ready\n", "the other process did not begin"
            into = np.zeros(size // 8, np.uint64)
            if kind == "ours":
                reader = snakepit_shm.attach(name, **WHERE)
                read: Callable[[], Any] = lambda: reader.read_into(into)  # noqa: E731, B023
            else:
                held = attach(name)
                view = np.frombuffer(held.buf, np.uint64, size // 8)
                read = lambda: np.copyto(into, view)  # noqa: E731, B023
            print("go", file=child.stdin, flush=True)
            assert child.stdout.readline() == "going\n"
            found[kind] = beside(read, into)
            written = int(child.stdout.readline())
            found[kind]["written"] = written / SECONDS
            child.stdin.close()
            assert child.wait() == 0
            if kind == "ours":
                reader.close()
            else:
                del view, read
                held.close()
    ours, theirs = found["ours"], found["theirs"]
    for what, name, unit in (
        ("flat-out/rate", "values read, writer flat out", "per_second"),
        ("flat-out/p50", "a read, P50, writer flat out", "ns"),
        ("flat-out/p99", "a read, P99, writer flat out", "ns"),
        ("flat-out/torn", "torn values that were taken for whole, writer flat out", "count"),
    ):
        field = what.split("/")[1]
        note = f"of {ours['values']} and {theirs['values']} values" if field == "torn" else ""
        figures.add(what, name, size, PEER, [(ours[field], theirs[field])], unit, note)


def beside(read: Callable[[], Any], into: np.ndarray) -> dict[str, float]:
    """Reads for as long as the writer writes."""
    took, torn, conflicts = [], 0, 0
    start = time.perf_counter_ns()
    end = start + round(SECONDS * 0.9e9)
    clock = time.perf_counter_ns
    spent = 0
    while clock() < end:
        began = clock()
        try:
            read()
        except snakepit_shm.VersionConflictError:
            conflicts += 1
            spent += clock() - began
            continue
        took.append(clock() - began)
        torn += bool((into != into[0]).any())
    taken = sorted(took) or [0]
    return {
        "values": len(took),
        "rate": len(took) / ((sum(took) + spent) / 1e9) if took else 0.0,
        "p50": taken[len(taken) // 2],
        "p99": taken[len(taken) * 99 // 100],
        "torn": torn,
    }


def segments(figures: Figures, count: int) -> None:
    """Create one more and attach to one, among so many."""
    names = [f"{PREFIX}-seg-{count}-{i}" for i in range(count)]
    theirs: list[shared_memory.SharedMemory] = []
    try:
        for name in names:
            theirs.append(create(name, 4096))
    except OSError as error:
        figures.skip(
            f"python, {PEER}, among {count}", f"{len(theirs)} were made, then: {error.strerror}"
        )
        for held in theirs:
            held.close()
            held.unlink()
        return
    ours = [snakepit_shm.create(name, 4096, slots=1, **WHERE) for name in names]
    try:
        for writer in ours:
            writer.write(b"12345678")
        turns = 20 if QUICK else 100
        made, attached = [], []
        for turn in range(turns):
            which = names[turn * 7919 % count]
            name = f"{PREFIX}-more-{count}-{turn}"
            pair = []
            for make, end in (
                (
                    lambda name: snakepit_shm.create(name, 4096, slots=1, **WHERE),
                    lambda w: w.close(),
                ),
                (lambda name: create(name, 4096), lambda s: (s.close(), s.unlink())),
            ):
                start = time.perf_counter_ns()
                one = make(name)
                pair.append(float(time.perf_counter_ns() - start))
                end(one)
            made.append((pair[0], pair[1]))
            pair = []
            for open_one in (lambda name: snakepit_shm.attach(name, **WHERE), attach):
                start = time.perf_counter_ns()
                reader = open_one(which)
                pair.append(float(time.perf_counter_ns() - start))
                reader.close()
            attached.append((pair[0], pair[1]))
        figures.add(f"create/{count}", f"create one more, among {count}", None, PEER, made)
        figures.add(f"attach/{count}", f"attach to one, among {count}", None, PEER, attached)
    finally:
        for writer in ours:
            writer.close()
        for held in theirs:
            held.close()
            # The tracker forgot it when this process attached to it itself.
            resource_tracker.register(held._name, "shared_memory")  # type: ignore[attr-defined]
            held.unlink()


def main() -> None:
    """Either side."""
    if "--writer" in sys.argv:
        kind, name, size, seconds = sys.argv[sys.argv.index("--writer") + 1 :][:4]
        writer_process(kind, name, int(size), float(seconds))
        return
    os.sched_setaffinity(0, {two_cpus()[1]})
    figures = Figures("python")
    for size in SIZES:
        one_process(figures, size)
        if size <= 16 << 20:
            two_processes(figures, size)
        else:
            figures.skip(
                f"python, two processes, {human(size)}",
                "looking for tears takes too long in Python",
            )
    figures.save()
    for count in COUNTS:
        segments(figures, count)
    figures.save()


if __name__ == "__main__":
    main()
