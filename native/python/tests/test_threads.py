"""Many threads that share, resolve and release at once; forks and ends in the middle of it."""

from __future__ import annotations

import contextlib
import gc
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import snakepit_shm as shm
from conftest import PATIENCE, Place, until
from snakepit_shm import _api

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


def whole(value: Any) -> bool:
    """Whether all bytes of a value are from one write."""
    octets = np.frombuffer(value, "u1")
    return bool((octets == octets[0]).all())


def test_threads_use_one_writer_and_one_reader(place: Place) -> None:
    """In every way at once; what any of them sees is from one write."""
    size = 1 << 16
    written: list[int] = []
    with place.create(size=size, slots=8) as writer, place.attach() as reader:
        writer.write(bytes(size))

        def write(number: int) -> None:
            for turn in range(TURNS):
                octet = (number * TURNS + turn) % 256
                # A slot is on loan to another thread meanwhile.
                with contextlib.suppress(shm.ViewsAliveError):
                    if turn % 3 == 0:
                        with writer.loan(size) as array:
                            array[:] = octet
                        del array
                    elif turn % 3 == 1:
                        writer.write(np.full(size, octet, "u1"))
                    else:
                        writer.write(bytearray([octet]) * size)
            written.append(number)

        def read() -> int:
            buffer, seen, looks = bytearray(size), 0, 0
            while looks < TURNS or len(written) < THREADS // 2:
                # Lapped by so many writers.
                with contextlib.suppress(shm.VersionConflictError):
                    assert whole(reader.read())
                    assert whole(reader.numpy())
                    assert reader.read_into(buffer) == size
                    assert whole(buffer)
                    assert all(whole(value) for value in shm.read_many([reader] * 2))
                    following = reader.read_next()
                    assert following is None or whole(following[0])
                with reader.pin() as pin:
                    assert whole(pin.memoryview())
                assert reader.version >= seen
                seen = reader.last_version
                looks += 1
            return looks

        def work(number: int) -> int | None:
            return write(number) if number % 2 else read()

        looks = in_threads(work)
        assert all(count >= TURNS for count in looks if count is not None)
        assert whole(reader.read())
    gc.collect()  # a loan's memoryview may lie in a cycle with the error of another's
    place.sweep()


def test_threads_open_close_list_and_seal(place: Place) -> None:
    """Each its own segments, all of them one more, and everybody everybody's names."""
    with place.create("common") as common:
        common.write(b"common")

        def work(number: int) -> None:
            for turn in range(TURNS):
                name = f"of-{number}-{turn % 2}"
                with place.create(name) as writer, place.attach(name) as reader:
                    writer.write(b"%d" % turn)
                    assert reader.read() == b"%d" % turn
                    with place.attach("common") as other:
                        assert other.read() == b"common"
                    writer.seal()
                    value = place.resolve(writer.handle())
                    assert bytes(value) == b"%d" % turn
                    del value
                if turn % 10 == 0:
                    listed = {info.name for info in shm.list_segments(**place.where)}
                    assert "common" in listed
                    assert name not in listed

        in_threads(work)
    assert place.files() == []


def test_threads_borrow_one_region(place: Place) -> None:
    """One of them fills it in; the others hear that it is busy, or filled."""
    for turn in range(TURNS):
        with place.create("lent", 1 << 16, slots=1) as owner:
            token = owner._incarnation
            owner.release()
        loan = {
            "__snakepit_shm_loan__": 1,
            "name": "lent",
            "namespace": place.namespace,
            "size": 1 << 16,
            "token": token,
        }

        def work(number: int, loan: Any = loan) -> Any:
            borrowed = shm.borrow(loan, shape=(100,), dtype="i8", dir=place.dir)
            try:
                with borrowed as array:
                    array[:] = number
            except (shm.SegmentBusyError, shm.SealedError):
                return None
            return number, borrowed.handle

        (done,) = [result for result in in_threads(work) if result is not None]
        number, handle = done
        assert (place.resolve(handle) == number).all(), turn
        place.release(handle)
    assert place.files() == []


def test_threads_draw_on_one_iterator_of_values(place: Place) -> None:
    """Each value comes to one of them, whole; all of them end with the segment."""
    values = THREADS * TURNS
    with place.create(slots=64) as writer, place.attach() as reader:
        each = reader.values(timeout=PATIENCE)

        def work(number: int) -> list[bytes]:
            if number == 0:
                for value in range(values):
                    writer.write(b"%05d" % value * 100)
                writer.seal()
                return []
            # One that another thread took in the meantime is waited for again.
            return list(each)

        drawn = [value for thread in in_threads(work) for value in thread]
    assert all(value == value[:5] * 100 for value in drawn)
    assert len({*drawn}) == len(drawn) <= values
    assert max(drawn)[:5] == b"%05d" % (values - 1)


def test_what_is_open_can_be_listed_while_threads_open_and_close(place: Place) -> None:
    """As it is at exit, when threads that nobody waits for still run."""
    with place.create("common") as writer, contextlib.ExitStack() as kept:
        mine = [kept.enter_context(place.attach("common")) for _ in range(100)]
        listed = threading.Event()

        def work(number: int) -> None:
            while number and not listed.is_set():
                place.attach("common").close()
            if not number:
                try:
                    for _ in range(500):
                        found = _api._still_open()
                        assert {*map(id, mine), id(writer)} <= {*map(id, found)}
                        assert found.index(writer) >= len(mine)
                finally:
                    listed.set()

        in_threads(work)


def test_an_interpreter_that_ends_while_threads_open_and_share(place: Place) -> None:
    place.run(
        """
        import threading, numpy, snakepit_shm as shm
        common = shm.create("common", 4096)
        kept = [shm.attach("common") for _ in range(300)]  # what is closed at the end takes a while
        started = threading.Barrier(5)
        def churn(number):
            started.wait()
            try:
                while True:
                    name = f"of-{number}"
                    with shm.create(name, 4096) as writer, shm.attach(name) as reader:
                        writer.write(b"x")
                        reader.read()
                    handle = shm.share(numpy.arange(100))
                    shm.resolve(handle)
                    shm.release(handle)
            except shm.ShmError:
                pass  # closed at the interpreter's end
        for number in range(4):
            threading.Thread(target=churn, args=(number,), daemon=True).start()
        started.wait()
        """
    )
    place.sweep()  # what was begun after the interpreter had closed everything
    assert place.files() == []
