"""Many waits: of readers, segments, loops and threads, without a thread for each."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import snakepit_shm as shm
from conftest import PATIENCE, Place, until
from loops import WAITER, descriptors, run, threads, waiting
from snakepit_shm import _async


def test_a_thousand_readers_of_a_hundred_segments_have_one_thread(place: Place) -> None:
    async def main() -> None:
        writers = [place.create(f"s{n}") for n in range(100)]
        readers = [place.attach(f"s{n % 100}") for n in range(1000)]
        before = threads()
        mine = threads(WAITER)
        assert mine <= 1
        tasks = [asyncio.create_task(reader.wait_async()) for reader in readers]
        await asyncio.sleep(0)
        assert len(_async._hubs[asyncio.get_running_loop()]._waiting) == 1000
        assert threads() <= before + 1 - mine
        until(lambda: threads(WAITER) == 1, "the thread to have its name")
        # To the writer they are one sleeper.
        assert shm.inspect("s0", **place.where)["waiters"] == 1
        for writer in writers:
            writer.write(b"x")
        assert await asyncio.gather(*tasks) == [2] * 1000
        assert threads(WAITER) == 1
        for opened in (*readers, *writers):
            opened.close()

    run(main())


def test_more_segments_than_one_thread_can_watch_take_a_few(place: Place) -> None:
    async def main() -> None:
        writers = [place.create(f"s{n}") for n in range(300)]
        readers = [place.attach(f"s{n}") for n in range(300)]
        tasks = [asyncio.create_task(reader.wait_async()) for reader in readers]
        await asyncio.sleep(0)
        until(lambda: threads(WAITER) == 3, "threads to have their names")
        for writer in writers:
            writer.write(b"x")
        assert await asyncio.gather(*tasks) == [2] * 300
        for opened in (*readers, *writers):
            opened.close()

    run(main())
    until(lambda: threads(WAITER) == 0, "threads without work to end")


def test_many_loops_in_many_threads_wait_for_one_reader(place: Place) -> None:
    values = 50

    def follow(reader: shm.Reader) -> int:
        async def main() -> int:
            last = 0
            while last < 2 * values:
                last = await reader.wait_async(since=last)
            return last

        return run(main())

    with place.create() as writer, place.attach() as reader, ThreadPoolExecutor(8) as pool:
        following = [pool.submit(follow, reader) for _ in range(8)]
        for _ in range(values):
            writer.write(b"x")
            time.sleep(0.001)
        assert [f.result(PATIENCE) for f in following] == [2 * values] * 8


def test_descriptors_of_closed_loops_go(place: Place) -> None:
    async def main(reader: shm.Reader) -> None:
        with pytest.raises(TimeoutError):
            await reader.wait_async(timeout=0)

    with place.create(), place.attach() as reader:
        run(main(reader))
        gc.collect()
        before = descriptors()
        for _ in range(20):
            run(main(reader))
        gc.collect()
        assert descriptors() <= before + 1


def test_a_loop_that_ends_with_waits_pending_leaves_the_reader_free(place: Place) -> None:
    async def main(reader: shm.Reader) -> None:
        task = asyncio.create_task(reader.wait_async())
        await waiting(task)  # asyncio.run cancels it

    with place.create():
        reader = place.attach()
        run(main(reader))
        reader.close()


def test_closing_from_another_thread_ends_a_wait(place: Place) -> None:
    async def main() -> None:
        with place.create():
            reader = place.attach()
            task = asyncio.create_task(reader.wait_async())
            await waiting(task)
            closer = threading.Thread(target=reader.close)
            closer.start()
            with pytest.raises(shm.ClosedError):
                await task
            closer.join()

    run(main())


def test_a_waiting_loop_sleeps(place: Place) -> None:
    """Waiting takes (next to) no processor time, in no thread: nothing is polled in a loop."""

    async def main() -> None:
        with place.create(), place.attach() as reader:
            before = time.process_time()
            with pytest.raises(shm.TimeoutError):
                await reader.wait_async(timeout=1)
            assert time.process_time() - before < 0.25

    run(main())


def test_waits_that_end_in_every_way_at_once_lose_nothing(place: Place) -> None:
    """Values, timeouts, cancellations and closes cross one another in several loops."""
    writers = [place.create(f"s{n}") for n in range(20)]
    done = threading.Event()

    def write() -> None:
        chosen = random.Random(1)  # noqa: S311
        while not done.is_set():
            chosen.choice(writers).write(b"x")
            time.sleep(chosen.random() * 0.0004)

    async def one(chosen: random.Random) -> None:
        reader = place.attach(f"s{chosen.randrange(len(writers))}")
        for _ in range(5):
            timeout = chosen.choice([None, 0.001, PATIENCE])
            task = asyncio.create_task(reader.wait_async(timeout=timeout))
            match chosen.randrange(8):
                case 0:
                    await asyncio.sleep(chosen.random() * 0.003)
                    task.cancel()
                case 1:
                    await asyncio.sleep(chosen.random() * 0.003)
                    reader.close()
            with contextlib.suppress(shm.TimeoutError, shm.ClosedError, asyncio.CancelledError):
                version = await task
                assert version == reader.last_version
        reader.close()  # raises when a wait still holds it

    async def main(seed: int) -> None:
        chosen = random.Random(seed)  # noqa: S311
        for _ in range(15):
            await asyncio.gather(*(one(chosen) for _ in range(10)))

    with ThreadPoolExecutor(5) as pool:
        writing = pool.submit(write)
        loops = [pool.submit(run, main(seed)) for seed in range(4)]
        try:
            for loop in loops:
                loop.result(PATIENCE)
        finally:
            done.set()
        writing.result(PATIENCE)
    assert [shm.inspect(f"s{n}", **place.where)["waiters"] for n in range(20)] == [0] * 20
    for writer in writers:
        writer.close()
