"""Many threads that share, resolve and release at once; forks and ends in the middle of it."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import snakepit_shm as shm
from conftest import Place, until

THREADS = 16
TURNS = 30


def in_threads(work: Callable[[int], Any]) -> list[Any]:
    start = threading.Barrier(THREADS)

    def begin(number: int) -> Any:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def test_threads_share_resolve_and_release(place: Place) -> None:
    def work(number: int) -> None:
        for turn in range(TURNS):
            value = number * TURNS + turn
            if turn % 2:
                array = shm.empty((50, 60), "i8", **place.where)
                array[:] = value
                handle = place.share(array, copy=False)
                del array
            else:
                handle = place.share(np.full((50, 60), value))
            one, two = place.resolve(handle), place.resolve(json.dumps(handle))
            place.release(handle)
            assert (one == value).all()
            assert two[-1, -1] == value

    in_threads(work)
    assert place.files() == []


def test_threads_resolve_one_handle_while_it_goes(place: Place) -> None:
    for turn in range(TURNS):
        handle = place.share(np.full(10_000, turn))

        def work(number: int, handle: Any = handle, turn: int = turn) -> int:
            if number == THREADS // 2:
                place.release(handle)
            try:
                got = place.resolve(handle)
            except shm.NotFoundError:
                return 0
            assert (got == turn).all()
            return 1

        assert sum(in_threads(work)) < THREADS
    assert place.files() == []


def test_threads_share_one_array_once(place: Place) -> None:
    for _ in range(TURNS):
        array = shm.empty(1000, "u1", **place.where)
        array[:] = 7
        handles = in_threads(lambda _, array=array: place.share(array))
        assert all((place.resolve(handle) == 7).all() for handle in handles)
        for handle in handles:
            place.release(handle)
        del array
    assert place.files() == []


def test_an_array_that_is_written_to_while_it_is_shared(place: Place) -> None:
    """What it held at some moments; from then on it is what it is."""
    array = np.zeros(1 << 20, "u1")
    stop = threading.Event()

    def write() -> None:
        value = 0
        while not stop.is_set():
            value = (value + 1) % 256
            array[:] = value

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(TURNS):
            handle = place.share(array, integrity="crc32c")
            got = place.resolve(handle)
            once = got.tobytes()
            assert place.resolve(handle, as_="bytes") == once == got.tobytes()
            place.release(handle)
    finally:
        stop.set()
        writer.join()


def test_views_of_many_threads_outlive_everything(place: Place) -> None:
    def work(number: int) -> Any:
        handle = place.share(np.full(100_000, number))
        got = place.resolve(handle)
        place.release(handle)
        return got[::2]

    kept = in_threads(work)
    shm.drain_pool(**place.where)
    gc.collect()
    for number, part in enumerate(kept):
        assert (part == number).all()


def test_a_fork_in_the_middle_of_it(place: Place) -> None:
    out = place.run(
        """
        import os, threading, warnings, numpy, snakepit_shm
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        stop = threading.Event()
        def churn():
            while not stop.is_set():
                handle = snakepit_shm.share(numpy.arange(1000))
                snakepit_shm.resolve(handle).sum()
                snakepit_shm.release(handle)
        threads = [threading.Thread(target=churn) for _ in range(4)]
        mine = snakepit_shm.share(numpy.full(1000, 3))
        view = snakepit_shm.resolve(mine)
        for thread in threads: thread.start()
        for _ in range(20):
            child = os.fork()
            if not child:
                ok = view.sum() == 3000                      # what the parent had mapped
                ok = ok and snakepit_shm.resolve(mine).sum() == 3000
                handle = snakepit_shm.share(numpy.full(10, 5))
                ok = ok and snakepit_shm.resolve(handle).sum() == 50
                snakepit_shm.release(handle)
                snakepit_shm.drain_pool()
                os._exit(0 if ok else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads: thread.join()
        assert view.sum() == 3000
        snakepit_shm.release(mine)
        print("ok")
        """
    )
    assert out == "ok\n"
    until(lambda: place.files() == [], "an empty directory")


def test_an_interpreter_that_ends_under_threads_and_views(place: Place) -> None:
    place.run(
        """
        import threading, numpy, snakepit_shm
        handle = snakepit_shm.share(numpy.arange(100_000))
        table = snakepit_shm.resolve(handle)
        kept = [table[n:] for n in range(10)]
        def look():
            while True:
                kept[0].sum()
        for _ in range(4): threading.Thread(target=look, daemon=True).start()
        class Late:
            def __del__(self): self.of[0]
        late = Late(); late.of = kept[3]
        import builtins; builtins.late = late
        """
    )
    assert place.files() == []
    place.sweep()  # its views lived to the end, so it did not leave the participants table
