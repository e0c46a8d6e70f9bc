"""The values of a segment as iterators: `values` and `changes`."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import PATIENCE, Place, until
from loops import run, waiting


async def feed(writer: shm.Writer, values: list[bytes]) -> None:
    for value in values:
        writer.write(value)
        await asyncio.sleep(0.001)


def test_changes_are_the_newest_values_each_once(place: Place) -> None:
    async def main() -> None:
        with place.attach() as reader:
            seen = []
            changes = reader.changes()
            async for value in changes:
                assert isinstance(value, bytes)
                seen.append(value)
                if len(seen) == 1:
                    writer.write(b"b")
                    writer.write(b"c")  # b was never the newest when anybody looked
                elif len(seen) == 2:
                    writer.write(b"d")
                else:
                    writer.close()
            assert seen == [b"a", b"c", b"d"]
            assert changes.version == 8

    writer = place.create()
    writer.write(b"a")
    run(main())


def test_every_change_comes_in_turn_and_the_missed_are_counted(place: Place) -> None:
    async def main() -> None:
        writer = place.create(slots=4)
        with place.attach() as reader:
            for n in range(10):
                writer.write(b"%d" % n)
            changes = reader.changes(every=True)
            got = [await anext(changes)]
            assert (got, changes.missed) == ([b"6"], 6)
            feeding = asyncio.create_task(feed(writer, [b"10", b"11"]))
            feeding.add_done_callback(lambda _: writer.close())
            async for value in changes:
                got.append(value)
                assert changes.missed == 0
            assert got == [b"6", b"7", b"8", b"9", b"10", b"11"]

    run(main())


def test_changes_fill_a_buffer_or_are_arrays(place: Place) -> None:
    async def main() -> None:
        with place.create() as writer, place.attach() as reader:
            writer.write(np.arange(3, dtype="f4"))
            (array,) = [await anext(reader.changes(kind="numpy"))]
            assert array.dtype == np.float32
            assert array.tolist() == [0, 1, 2]
            buffer = np.zeros(4, "f4")
            changes = reader.changes(into=buffer)
            view = await anext(changes)
            assert isinstance(view, memoryview)
            assert view.nbytes == 12
            assert buffer.tolist() == [0, 1, 2, 0]
            writer.write(np.full(4, 5, "f4"))
            assert (await anext(changes)).nbytes == 16
            assert buffer.tolist() == [5] * 4
            writer.seal()
            with pytest.raises(StopAsyncIteration):
                await anext(changes)
            # What was sealed is still the first value of another.
            assert [value.tolist() async for value in reader.changes(kind="numpy")] == [[5] * 4]
            assert [value async for value in reader.changes(since=reader.version)] == []

    run(main())


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "list"},
        {"every": True, "kind": "numpy"},
        {"every": True, "into": bytearray(8)},
        {"every": True, "since": 2},
        {"kind": "numpy", "into": bytearray(8)},
    ],
)
def test_options_that_do_not_go_together_are_refused(place: Place, options: dict[str, Any]) -> None:
    with place.create(), place.attach() as reader, pytest.raises(shm.InvalidOptionError):
        reader.changes(**options)


def test_a_reader_that_is_closed_under_its_iterator_is_an_error(place: Place) -> None:
    async def main() -> None:
        with place.create():
            reader = place.attach()
            task = asyncio.ensure_future(anext(reader.changes()))
            await waiting(task)
            reader.close()
            with pytest.raises(shm.ClosedError):
                await task

    run(main())
    with place.create():
        reader = place.attach()
        values = reader.values()
        reader.close()
        with pytest.raises(shm.ClosedError):
            next(values)


def test_values_are_an_iterator_that_waits(place: Place) -> None:
    def produce() -> None:
        for n in range(200):
            writer.write(n.to_bytes(2, "little"))
            until(lambda n=n: len(got) + missed[0] > n - 5, "the reader to follow")
        writer.seal()

    writer = place.create(slots=8)
    got: list[int] = []
    missed = [0]
    with place.attach() as reader, ThreadPoolExecutor(1) as pool:
        producing = pool.submit(produce)
        values = reader.values(timeout=PATIENCE)
        for value in values:
            got.append(int.from_bytes(value, "little"))
            missed[0] += values.missed
        producing.result(PATIENCE)
    assert (got, missed) == (list(range(200)), [0])
    writer.close()


def test_values_can_go_on_after_a_timeout(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        values = reader.values(timeout=0.01)
        with pytest.raises(shm.TimeoutError):
            next(values)
        writer.write(b"late")
        assert next(values) == b"late"
