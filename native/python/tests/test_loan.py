"""Filling a slot in place."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import PATIENCE, Place


def test_what_is_filled_in_place_is_published_at_the_end(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        loan = writer.loan((2, 3), "<f4")
        with loan as array:
            assert (array.shape, array.dtype) == ((2, 3), np.dtype("<f4"))
            assert array.flags.writeable
            assert not array.flags.owndata
            assert array.ctypes.data % 64 == 0
            array[:] = [[1, 2, 3], [4, 5, 6]]
            assert reader.version == 0
            assert loan.version == 0
        assert loan.version == writer.version == 2
        assert reader.numpy().tolist() == [[1, 2, 3], [4, 5, 6]]
        del array


def test_afterwards_the_array_cannot_be_written(place: Place) -> None:
    with place.create() as writer:
        with writer.loan(4) as array:
            array[:] = 7
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        del array


def test_an_exception_publishes_nothing(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"before")
        lent: list[Any] = []

        def fail() -> None:
            with writer.loan(6) as array:
                lent.append(array)
                array[:] = 0
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        (array,) = lent
        assert not array.flags.writeable
        assert (reader.read(), reader.version) == (b"before", 2)
        writer.write_at(0, b"B")
        assert reader.read() == b"Before"
        lent.clear()
        del array


def test_shapes_and_formats(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        cases: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
            ({}, ("raw", "", (), 4096)),
            ({"shape": 10}, ("raw", "", (), 10)),
            ({"shape": [10]}, ("raw", "", (), 10)),
            ({"shape": 10, "format": "arrow_ipc"}, ("arrow_ipc", "", (), 10)),
            ({"shape": 10, "format": "raw"}, ("raw", "", (), 10)),
            ({"dtype": "f8"}, ("numpy", "<f8", (512,), 4096)),
            ({"shape": (2, np.int64(2)), "dtype": np.uint16}, ("numpy", "<u2", (2, 2), 8)),
            ({"shape": (), "dtype": "f4"}, ("numpy", "<f4", (), 4)),
        ]
        for options, (format, dtype, shape, nbytes) in cases:
            with writer.loan(**options) as array:
                assert array.nbytes == nbytes
                array.fill(0)
            info = reader.info()
            assert (info.format, info.dtype, info.shape, info.nbytes) == (
                format,
                dtype,
                shape,
                nbytes,
            )
        del array


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"shape": 0}, shm.OutOfBoundsError),
        ({"shape": 4097}, shm.OutOfBoundsError),
        ({"shape": 2**63}, shm.OutOfBoundsError),
        ({"shape": (4096, 2), "dtype": "u1"}, shm.OutOfBoundsError),
        ({"shape": (0, 2), "dtype": "u1"}, shm.OutOfBoundsError),
        ({"shape": (2**33,), "dtype": "u1"}, shm.InvalidOptionError),
        ({"shape": (2, 2)}, shm.InvalidOptionError),
        ({"shape": "3"}, shm.InvalidOptionError),
        ({"shape": -3}, shm.InvalidOptionError),
        ({"shape": 3, "format": "numpy"}, shm.InvalidOptionError),
        ({"shape": 3, "dtype": "u1", "format": "raw"}, shm.InvalidOptionError),
        ({"shape": 3, "format": "jpeg"}, shm.InvalidOptionError),
        ({"shape": 3, "dtype": "O"}, shm.UnsupportedError),
        ({"shape": 3, "dtype": "nonsense"}, TypeError),
    ],
)
def test_bad_requests_change_nothing(place: Place, options: Any, error: type) -> None:
    with place.create() as writer:
        with pytest.raises(error), writer.loan(**options):
            raise AssertionError("never entered")
        assert writer.write(b"still works") == 2


def test_while_a_loan_is_under_way_nothing_else_goes(place: Place) -> None:
    with place.create() as writer:
        with writer.loan(4) as array:
            array[:] = 1
            for call in (
                lambda: writer.write(b"x"),
                lambda: writer.write(np.zeros(3)),
                lambda: writer.write_at(0, b"x"),
                lambda: writer.loan(4).__enter__(),
                writer.seal,
                writer.close,
                writer.release,
            ):
                with pytest.raises(shm.ViewsAliveError, match="on loan"):
                    call()
        assert writer.version == 2
        del array


def test_a_loan_is_good_once(place: Place) -> None:
    with place.create() as writer:
        loan = writer.loan(4)
        with loan as array:
            array[:] = 1
        with pytest.raises(shm.ViewsAliveError, match="used before"):
            loan.__enter__()
        loan.__exit__(None, None, None)
        assert writer.version == 2
        del array


def test_a_loan_that_is_never_left_gives_the_writer_back(place: Place) -> None:
    def fill(writer: shm.Writer) -> Iterator[Any]:
        with writer.loan(4) as array:
            yield array

    with place.create() as writer:
        loan = writer.loan(4)
        loan.__enter__()
        del loan
        gc.collect()
        assert writer.write(b"x") == 2
        generator = fill(writer)
        next(generator)
        generator.close()
        assert writer.write(b"y") == 4


def test_the_only_slot_is_lent_before_the_first_value_alone(place: Place) -> None:
    with place.create(slots=1) as writer, place.attach() as reader:
        with writer.loan(2) as array:
            array[:] = 5
        with pytest.raises(shm.UnsupportedError), writer.loan(2):
            raise AssertionError("never entered")
        assert reader.read() == b"\5\5"
        writer.write(b"works")
        assert reader.read() == b"works"
        del array


def test_closing_under_an_array_that_was_on_loan_is_refused(place: Place) -> None:
    writer = place.create()
    with writer.loan(4) as array:
        array[:] = 9
        part = array[1:]
    for owner in ("array", "part"):
        with pytest.raises(shm.ViewsAliveError, match="on loan"):
            writer.close()
        assert writer.write(b"still open") > 0
        if owner == "array":
            del array
    del part
    writer.close()
    assert place.files() == []


def test_an_array_that_was_on_loan_keeps_the_memory(place: Place) -> None:
    def lend() -> Any:
        writer = place.create()
        with writer.loan(4) as array:
            array[:] = 9
        return array[1:]

    part = lend()
    gc.collect()
    assert part.tolist() == [9, 9, 9]
    with place.attach() as reader:
        assert reader.read() == b"\t" * 4
    del part
    gc.collect()
    place.sweep()


def test_threads_take_turns(place: Place) -> None:
    size = 1 << 20
    with place.create(size=size, slots=3) as writer, place.attach() as reader:
        failures: list[BaseException] = []

        def write(value: int) -> None:
            try:
                array = np.full(size, value, np.uint8)
                for _ in range(30):
                    writer.write(array)
                    writer.write(bytes([value]) * 10)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            try:
                value = reader.read()
            except (shm.EmptyError, shm.VersionConflictError):
                continue
            assert value == value[:1] * len(value)
        for thread in threads:
            thread.join()
        assert failures == []
        assert writer.version == 2 * 4 * 60
        last = reader.read()
        assert last == last[:1] * 10


def test_threads_that_lend_fail_and_write_do_not_block_one_another(place: Place) -> None:
    size = 1 << 20
    with place.create(size=size, slots=3) as writer:
        array = np.zeros(size, np.uint8)
        done = threading.Event()

        def lend() -> int:
            count = 0
            while not done.is_set():
                with contextlib.suppress(ZeroDivisionError, shm.ViewsAliveError), writer.loan(8):
                    count += 1
                    raise ZeroDivisionError
            return count

        def forget() -> int:
            count = 0
            while not done.is_set():
                loan = writer.loan(8)
                with contextlib.suppress(shm.ViewsAliveError):
                    loan.__enter__()
                    count += 1
                del loan
            return count

        def write() -> int:
            count = 0
            while count < 50:
                with contextlib.suppress(shm.ViewsAliveError):
                    writer.write(array)
                    writer.write(b"small")
                    writer.write_at(2, bytearray(b"x"))
                    count += 1
            return count

        with ThreadPoolExecutor(6) as pool:
            busy = [pool.submit(f) for f in (lend, lend, forget)]
            writing = [pool.submit(write) for _ in range(3)]
            try:
                assert [w.result(PATIENCE) for w in writing] == [50] * 3
            finally:
                done.set()
            assert all(b.result(PATIENCE) > 0 for b in busy)
