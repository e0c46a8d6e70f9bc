"""Waiting in event loops: woken by writes, ended by every end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

import pytest

import snakepit_shm as shm
from conftest import Place
from loops import run, waiting
from snakepit_shm import _async


def test_a_value_that_is_there_is_not_waited_for(place: Place) -> None:
    async def main() -> None:
        with place.create() as writer, place.attach() as reader:
            writer.write(b"a")
            assert await reader.wait_async() == 2
            assert reader.last_version == 2
            assert await reader.wait_async(since=0) == 2
            with pytest.raises(shm.TimeoutError):
                await reader.wait_async(timeout=0)

    run(main())


def test_a_write_wakes(place: Place) -> None:
    async def main() -> None:
        with place.create() as writer, place.attach() as reader:
            for n in range(1, 101):
                task = asyncio.create_task(reader.wait_async())
                await waiting(task)
                assert writer.write(b"x") == 2 * n
                assert await task == 2 * n
                assert reader.last_version == 2 * n

    run(main())


def test_a_timeout_is_the_error_of_the_package(place: Place) -> None:
    async def main() -> None:
        with place.create(), place.attach() as reader:
            started = time.monotonic()
            with pytest.raises(TimeoutError) as caught:
                await reader.wait_async(timeout=0.1)
            assert time.monotonic() - started >= 0.1
            assert isinstance(caught.value, shm.TimeoutError)
            assert "100ms" in str(caught.value)
            assert not _async._hubs[asyncio.get_running_loop()]._waiting

    run(main())


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_an_impossible_timeout_is_refused(place: Place, timeout: float) -> None:
    with place.create(), place.attach() as reader, pytest.raises(shm.InvalidOptionError):
        reader.wait_async(timeout=timeout)


def test_a_cancelled_wait_is_given_up_and_frees_the_reader(place: Place) -> None:
    async def main() -> None:
        with place.create() as writer:
            reader = place.attach()
            task = asyncio.create_task(reader.wait_async())
            await waiting(task)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.wait_async(), 0.02)
            assert not _async._hubs[asyncio.get_running_loop()]._waiting
            reader.close()  # no view of it is left
            assert shm.inspect("it", **place.where)["waiters"] == 0
            writer.write(b"unharmed")

    run(main())


def test_seal_close_and_removal_end_waits_with_their_names(place: Place) -> None:
    async def main() -> None:
        writers = {name: place.create(name) for name in ("sealed", "closed", "removed", "own")}
        readers = {name: place.attach(name) for name in writers}
        for writer in writers.values():
            writer.write(b"1")
        tasks = {
            name: asyncio.create_task(reader.wait_async(since=2))
            for name, reader in readers.items()
        }
        await waiting(tasks["own"])
        writers["sealed"].seal()
        writers["closed"].close()
        shm.remove("removed", **place.where)
        readers["own"].close()
        with pytest.raises(shm.SealedError):
            await tasks["sealed"]
        for name in ("closed", "removed", "own"):
            with pytest.raises(shm.ClosedError):
                await tasks[name]
        for opened in (*readers.values(), *writers.values()):
            opened.close()
        with pytest.raises(shm.ClosedError):
            await readers["own"].wait_async()

    run(main())


def test_a_file_that_is_cut_ends_waits_and_harms_no_others(place: Place) -> None:
    async def main() -> None:
        with place.create("other") as other, place.attach("other") as other_reader:
            writer = place.create()
            reader = place.attach()
            (file,) = (f for f in place.files() if "_it_" in f)
            task = asyncio.create_task(reader.wait_async())
            beside = asyncio.create_task(other_reader.wait_async())
            await waiting(task)
            os.truncate(place.dir / file, 0)
            with pytest.raises(shm.TruncatedError):
                await task
            other.write(b"x")
            assert await beside == 2
            for opened in (reader, writer):
                with contextlib.suppress(shm.TruncatedError):
                    opened.close()
            (place.dir / file).unlink()
            (place.dir / f"{place.namespace}_it.meta").unlink()

    run(main())
    place.sweep()


def test_a_segment_without_notification_is_not_waited_on(place: Place) -> None:
    with (
        place.create(notify=False),
        place.attach() as reader,
        pytest.raises(shm.UnsupportedError),
    ):
        run(reader.wait_async())
