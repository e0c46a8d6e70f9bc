"""Waiting: without the GIL, interruptible, ended by writes, closes and time."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import snakepit_shm as shm
from conftest import PATIENCE, Place, until


def test_a_value_that_is_there_is_not_waited_for(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"a")
        assert reader.wait() == 2
        assert reader.wait(since=0) == 2
        with pytest.raises(shm.TimeoutError):
            reader.wait(timeout=0)
        writer.write(b"b")
        assert reader.wait(timeout=0) == 4
        assert reader.last_version == 4


def test_timeout_is_the_built_in_one(place: Place) -> None:
    with place.create(), place.attach() as reader:
        started = time.monotonic()
        with pytest.raises(TimeoutError) as caught:
            reader.wait(timeout=0.15)
        assert time.monotonic() - started >= 0.15
        assert isinstance(caught.value, shm.TimeoutError)
        assert "0.15" in str(caught.value) or "150" in str(caught.value)


def test_a_write_wakes_every_waiter(place: Place) -> None:
    with place.create() as writer, ThreadPoolExecutor(8) as pool:
        readers = [place.attach() for _ in range(8)]
        waiting = [pool.submit(reader.wait, None, PATIENCE) for reader in readers]
        assert not any(w.done() for w in waiting)
        writer.write(b"x")
        assert [w.result(PATIENCE) for w in waiting] == [2] * 8
        for reader in readers:
            reader.close()


def test_no_value_is_missed_between_read_and_wait(place: Place) -> None:
    """A writer that answers each value the moment it was read: a lost wake-up would hang."""
    rounds = 2000
    with (
        place.create("ping") as ping,
        place.create("pong") as pong,
        place.attach("ping") as ping_reader,
        place.attach("pong") as pong_reader,
        ThreadPoolExecutor(1) as pool,
    ):

        def echo() -> None:
            for _ in range(rounds):
                ping_reader.wait(timeout=PATIENCE)
                pong.write(ping_reader.read())

        echoing = pool.submit(echo)
        for i in range(rounds):
            ping.write(i.to_bytes(4, "little"))
            pong_reader.wait(timeout=PATIENCE)
            assert int.from_bytes(pong_reader.read(), "little") == i
        echoing.result(PATIENCE)


def test_other_threads_run_meanwhile(place: Place) -> None:
    with place.create() as writer, place.attach() as reader, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader.wait, None, PATIENCE)
        counted = sum(1 for _ in range(200_000))
        assert counted == 200_000
        assert not waiting.done()
        writer.write(b"x")
        assert waiting.result(PATIENCE) == 2


def test_closing_the_reader_ends_its_waits(place: Place) -> None:
    with place.create(), ThreadPoolExecutor(4) as pool:
        reader = place.attach()
        waiting = [pool.submit(reader.wait) for _ in range(4)]
        until(lambda: threading.active_count() >= 5, "waiting threads")
        reader.close()
        for wait in waiting:
            with pytest.raises(shm.ClosedError):
                wait.result(PATIENCE)


def test_closing_the_writer_ends_waits(place: Place) -> None:
    with place.create() as writer:
        reader = place.attach()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(reader.wait)
            writer.close()
            with pytest.raises(shm.ClosedError) as caught:
                waiting.result(PATIENCE)
        assert isinstance(caught.value, EOFError)
        reader.close()


def test_a_seal_ends_waits(place: Place) -> None:
    with place.create() as writer, place.attach() as reader, ThreadPoolExecutor(1) as pool:
        writer.write(b"last")
        waiting = pool.submit(reader.wait, 2)
        writer.seal()
        with pytest.raises(shm.SealedError):
            waiting.result(PATIENCE)
        assert reader.wait(since=0) == 2


def test_a_segment_without_notification_is_not_waited_on(place: Place) -> None:
    with (
        place.create(notify=False),
        place.attach() as reader,
        pytest.raises(shm.UnsupportedError),
    ):
        reader.wait(timeout=1)


WAITER = """
    import signal, snakepit_shm
    reader = snakepit_shm.attach("it")
    print("waiting", flush=True)
    try:
        reader.wait({timeout})
    except KeyboardInterrupt:
        print("interrupted")
    reader.close()
"""


@pytest.mark.parametrize("timeout", ["", "timeout=3600"])
def test_ctrl_c_ends_a_wait(
    place: Place, processes: list[subprocess.Popen[str]], timeout: str
) -> None:
    with place.create() as writer:
        process = place.start(WAITER.format(timeout=timeout))
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.05)  # so that most runs interrupt the sleep itself; either way it must end
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, err) == (0, "interrupted\n", "")
        assert writer.write(b"unharmed") == 2


def test_a_signal_handler_that_returns_does_not_end_a_wait(
    place: Place, processes: list[subprocess.Popen[str]]
) -> None:
    with place.create() as writer:
        process = place.start(
            """
            import signal, snakepit_shm
            signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
            reader = snakepit_shm.attach("it")
            print("waiting", flush=True)
            print(reader.wait())
            reader.close()
            """
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "handled\n"
        writer.write(b"x")
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out, err) == (0, "2\n", "")


def test_a_waiting_process_sleeps(place: Place) -> None:
    """Waiting takes (next to) no processor time: nothing is polled in a loop."""
    with place.create(), place.attach() as reader:
        before = time.thread_time()
        with pytest.raises(shm.TimeoutError):
            reader.wait(timeout=1)
        assert time.thread_time() - before < 0.25
