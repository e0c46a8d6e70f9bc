"""Ends and interruptions in the middle of things, by threads, destructors, signals and exits."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import PATIENCE, Place, until


def test_what_destructors_share_and_release_meets_no_lock(place: Place) -> None:
    """The garbage collector runs them anywhere: also within a call that holds a lock."""
    out = place.run(
        """
        import gc, snakepit_shm

        class Owner:
            def __init__(self):
                self.handle = snakepit_shm.share(b"mine")
                self.cycle = self

            def __del__(self):
                snakepit_shm.release(self.handle)
                snakepit_shm.release(snakepit_shm.share(b"other"))
                snakepit_shm.copy_stats()

        for n in range(1500):
            gc.set_threshold(1 + n % 97)  # at any point, in the end
            Owner()
            snakepit_shm.release(snakepit_shm.share(b"in between"))
            snakepit_shm.copy_stats()
        gc.set_threshold(700)
        gc.collect()
        print("done")
        """
    )
    assert out == "done\n"
    assert place.files() == []


def test_what_a_signal_handler_shares_and_releases_meets_no_lock(place: Place) -> None:
    out = place.run(
        """
        import signal, snakepit_shm

        def handler(*_):
            snakepit_shm.release(snakepit_shm.share(b"in between"))
            snakepit_shm.copy_stats()
            handled.append(1)
            signal.setitimer(signal.ITIMER_REAL, 0.0002 + len(handled) % 50 * 1e-5)

        handled = []
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        while len(handled) < 1000:
            snakepit_shm.release(snakepit_shm.share(b"mine"))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print("done")
        """
    )
    assert out == "done\n"
    assert place.files() == []


def test_an_interrupted_copy_is_an_interrupt_and_leaves_nothing(place: Place) -> None:
    out = place.run(
        """
        import gc, os, numpy

        def copyto(target, source):  # as numpy's own is when a signal comes
            raise KeyboardInterrupt

        numpy.copyto = copyto
        import snakepit_shm

        snakepit_shm.release(snakepit_shm.share(b"small"))
        for value in (numpy.zeros(1_000_000), bytearray(1_000_000)):
            try:
                snakepit_shm.share(value)
            except KeyboardInterrupt:
                print("interrupted")
        gc.collect()
        before = os.environ["SNAKEPIT_SHM_DIR"]
        while any("_default_" in file for file in os.listdir(before)):
            pass  # a thread unmaps it
        """
    )
    assert out == "interrupted\n" * 2
    assert place.files() == []


@pytest.mark.parametrize(
    "work",
    [
        "snakepit_shm.release(snakepit_shm.share(large))",
        "snakepit_shm.release(snakepit_shm.share(b'small'))",
        "array = snakepit_shm.empty(1000); snakepit_shm.share(array)",
        "snakepit_shm.create(f'mine-{count}', 4096).write(b'x'); count += 1; time.sleep(0)",
        "writer.write(large)",
        "snakepit_shm.resolve(handle)",
    ],
    ids=["large", "small", "empty", "create", "write", "resolve"],
)
def test_daemon_threads_at_work_outlive_nothing(place: Place, work: str) -> None:
    """The interpreter ends around them: it must not be aborted, and nothing may be left."""
    for _ in range(4):
        out = place.run(
            """
            import contextlib, sys, threading, time
            import numpy, snakepit_shm

            large = numpy.ones(2_000_000)
            handle = snakepit_shm.share(b"to be looked at")
            writer = snakepit_shm.create("it", snakepit_shm.round_up_capacity(large.nbytes))

            def work(number):
                count = number * 1_000_000
                with contextlib.suppress(snakepit_shm.ShmError):
                    while True:
                        WORK
                        done.set()

            done = threading.Event()
            for number in range(3):
                threading.Thread(target=work, args=(number,), daemon=True).start()
            done.wait()
            """.replace("WORK", work)
        )
        assert out == ""
        assert place.files() == place.pool_files() == []
    place.sweep()  # the table, where a thread was looking at something


def test_closing_while_another_thread_writes_waits_for_the_value(place: Place) -> None:
    large = np.ones(1_000_000)
    done = threading.Event()

    def write(writer: shm.Writer) -> None:
        with contextlib.suppress(shm.ClosedError):
            while not done.is_set():
                writer.write(large)

    with ThreadPoolExecutor(2) as pool:
        try:
            for _ in range(10):
                writer = place.create(size=shm.round_up_capacity(large.nbytes))
                writing = [pool.submit(write, writer) for _ in range(2)]
                until(lambda writer=writer: writer.version, "a first value")
                writer.close()  # not refused for what a write itself holds
                for each in writing:
                    each.result(PATIENCE)
        finally:
            done.set()
    assert place.files() == []
