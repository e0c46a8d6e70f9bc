"""Waiting in event loops: woken by writes, ended by every end, and without a thread for each."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import PATIENCE, Place, until
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


def test_another_process_wakes_and_no_value_is_missed(
    place: Place, processes: list[subprocess.Popen[str]]
) -> None:
    """It answers each value the moment it was read: a lost wake-up would hang."""
    rounds = 500

    async def main() -> None:
        with place.create("ping") as ping:
            echo = place.start(
                f"""
                import asyncio, snakepit_shm

                async def main():
                    with (snakepit_shm.attach("ping") as ping,
                          snakepit_shm.create("pong", 4096) as pong):
                        print("ready", flush=True)
                        for _ in range({rounds}):
                            await ping.wait_async()
                            pong.write(ping.read())
                        input()

                asyncio.run(main())
                """
            )
            processes.append(echo)
            assert echo.stdout is not None
            assert echo.stdout.readline() == "ready\n"
            with place.attach("pong") as pong:
                for n in range(rounds):
                    ping.write(n.to_bytes(4, "little"))
                    await pong.wait_async()
                    assert int.from_bytes(pong.read(), "little") == n
                _, err = echo.communicate("\n", timeout=PATIENCE)
                assert (echo.returncode, err) == (0, "")

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


def test_a_writer_that_dies_is_followed_by_its_successor(
    place: Place, processes: list[subprocess.Popen[str]]
) -> None:
    async def main() -> None:
        victim = place.start(
            """
            import snakepit_shm
            writer = snakepit_shm.create("it", 4096)
            writer.write(b"1")
            print("ready", flush=True)
            input()
            """
        )
        processes.append(victim)
        assert victim.stdout is not None
        victim.stdout.readline()
        with place.attach() as reader:
            task = asyncio.create_task(reader.wait_async(since=2))
            await waiting(task)
            victim.send_signal(signal.SIGKILL)
            victim.wait(PATIENCE)
            writer = until(lambda: _takeover(place), "the claim of a dead writer")
            writer.write(b"2")
            assert await task == 4
            again = asyncio.create_task(reader.wait_async())
            await waiting(again)
            writer.close()
            with pytest.raises(shm.ClosedError):
                await again

    run(main())


def _takeover(place: Place) -> shm.Writer | None:
    with contextlib.suppress(shm.SegmentBusyError):
        return place.attach_writer()
    return None


def test_a_segment_without_notification_is_not_waited_on(place: Place) -> None:
    with (
        place.create(notify=False),
        place.attach() as reader,
        pytest.raises(shm.UnsupportedError),
    ):
        run(reader.wait_async())


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


def test_a_forked_child_has_a_notifier_of_its_own(place: Place) -> None:
    out = place.run(
        """
        import asyncio, os, warnings
        import snakepit_shm
        from snakepit_shm import _async, _native

        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
        writer = snakepit_shm.create("it", 4096)
        reader = snakepit_shm.attach("it")

        async def once(reader):
            task = asyncio.create_task(reader.wait_async())
            await asyncio.sleep(0)
            writer.write(b"x")
            return await task

        async def one_child(reader):
            reader = snakepit_shm.attach("it")
            try:
                return await reader.wait_async(since=reader.version, timeout=0.05)
            except TimeoutError:
                return "waited"
            finally:
                reader.close()

        async def closed_under_it(reader):
            task = asyncio.create_task(reader.wait_async(since=reader.version))
            await asyncio.sleep(0)
            reader.close()
            try:
                await task
            except snakepit_shm.ClosedError:
                return "closed"

        async def main():
            assert await once(reader) == 2
            hub = _async._hubs[asyncio.get_running_loop()]
            pending = asyncio.create_task(reader.wait_async())
            await asyncio.sleep(0)
            descriptor = hub._notifier.fileno()
            if (child := os.fork()) == 0:
                try:
                    assert hub._notifier.fileno() == -1
                    assert "eventfd" not in os.readlink(f"/proc/self/fd/{descriptor}")
                except FileNotFoundError:
                    pass
                except BaseException:
                    os._exit(1)
                assert hub._notifier.take() == []
                hub._notifier.cancel(1)
                try:
                    hub._notifier.watch(reader, 2)
                except snakepit_shm.UnsupportedError:
                    os._exit(7)
                os._exit(2)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            writer.write(b"y")
            assert await pending == 4

        asyncio.run(main())
        if (child := os.fork()) == 0:
            assert asyncio.run(one_child(reader)) == "waited"
            assert asyncio.run(closed_under_it(reader)) == "closed"
            os._exit(8)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 8
        reader.close()
        writer.close()
        print("both")
        """
    )
    assert out == "both\n"


def test_the_interpreter_ends_with_waits_pending(place: Place) -> None:
    out = place.run(
        """
        import asyncio, snakepit_shm
        writer = snakepit_shm.create("it", 4096)
        reader = snakepit_shm.attach("it")
        loop = asyncio.new_event_loop()
        task = loop.create_task(reader.wait_async())
        loop.call_later(0.05, loop.stop)
        loop.run_forever()
        assert not task.done()
        task._log_destroy_pending = False
        print("ending", flush=True)
        """.replace("import asyncio,", "import asyncio, warnings,").replace(
            "writer =", "warnings.simplefilter('ignore')\n        writer =", 1
        )
    )
    assert out == "ending\n"
    assert place.files() == []


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


def test_without_descriptors_a_wait_is_refused_by_name(place: Place) -> None:
    out = place.run(
        """
        import asyncio, resource, snakepit_shm, snakepit_shm._async

        async def main():
            with snakepit_shm.create("it", 4096) as writer, snakepit_shm.attach("it") as reader:
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
                try:
                    await reader.wait_async()
                except snakepit_shm.ResourceExhaustedError as error:
                    print(error)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                writer.write(b"x")
                print(await reader.wait_async())

        asyncio.run(main())
        """
    )
    said, version = out.splitlines()
    assert "descriptors" in said
    assert version == "2"
