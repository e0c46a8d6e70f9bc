"""`borrow`: the region of another process, filled in place."""

from __future__ import annotations

import json
import signal
from typing import Any

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import Place


def lend(place: Place, name: str = "lent", **more: Any) -> dict[str, Any]:
    """What Elixir's ``lend_region`` answers; the region is nobody's meanwhile."""
    with place.create(name, 1 << 20, slots=1) as writer:
        token = writer._incarnation
        writer.release()
    return {
        "__snakepit_shm_loan__": 1,
        "name": name,
        "namespace": place.namespace,
        "size": 1 << 20,
        "token": token,
        **more,
    }


def test_what_was_filled_in_has_a_handle(place: Place) -> None:
    loan = lend(place, dtype="<f4", shape=[3, 4])
    borrowed = shm.borrow(json.dumps(loan), dir=place.dir)
    with borrowed as array:
        assert (array.dtype, array.shape) == (np.dtype("f4"), (3, 4))
        array[:] = 2.5
        with pytest.raises(shm.NotFoundError):
            _ = borrowed.handle
        address = array.__array_interface__["data"][0]
    # The array may go on being looked at, in the place where it was filled.
    assert array.sum() == 30.0
    assert array.__array_interface__["data"][0] == address
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    found = place.resolve(borrowed.handle)
    assert found.tolist() == [[2.5] * 4] * 3
    place.release(borrowed.handle)
    assert place.files() == []


def test_the_borrower_may_say_what_it_is(place: Place) -> None:
    with (borrowed := shm.borrow(lend(place), shape=5, dir=place.dir)) as array:
        array[:] = list(b"bytes")
    assert bytes(place.resolve(borrowed.handle)) == b"bytes"
    place.release(borrowed.handle)

    loan = lend(place, "other", dtype="<f4", shape=[4])
    with (borrowed := shm.borrow(loan, shape=(2,), dtype="i8", dir=place.dir)) as array:
        array[:] = 7
    assert place.resolve(borrowed.handle).tolist() == [7, 7]
    place.release(borrowed.handle)
    assert place.files() == []


def test_an_exception_gives_it_back_and_it_can_be_borrowed_again(place: Place) -> None:
    loan = lend(place, dtype="|u1", shape=[4])
    kept = []

    def fail() -> None:
        with shm.borrow(loan, dir=place.dir) as array:
            array[:] = 1
            kept.append(array)
            raise KeyError("in the middle")

    with pytest.raises(KeyError):
        fail()
    assert kept[0].tolist() == [1, 1, 1, 1]  # still mapped
    with (borrowed := shm.borrow(loan, dir=place.dir)) as array:
        array[:] = 2
    assert place.resolve(borrowed.handle).tolist() == [2] * 4
    with pytest.raises(shm.SealedError), shm.borrow(loan, dir=place.dir):
        pass
    place.release(borrowed.handle)
    assert place.files() == []


def test_one_at_a_time(place: Place) -> None:
    loan = lend(place)
    with (
        shm.borrow(loan, dir=place.dir),
        pytest.raises(shm.SegmentBusyError),
        shm.borrow(loan, dir=place.dir),
    ):
        pass
    shm.remove("lent", **place.where)
    assert place.files() == []


def test_a_region_of_the_same_name_is_not_the_one_that_was_lent(place: Place) -> None:
    loan = lend(place)
    shm.remove("lent", **place.where)
    with pytest.raises(shm.NotFoundError), shm.borrow(loan, dir=place.dir):
        pass
    later = lend(place)
    with pytest.raises(shm.InvalidHandleError), shm.borrow(loan, dir=place.dir):
        pass
    with shm.borrow(later, shape=1, dir=place.dir) as array:
        array[:] = 0
    shm.remove("lent", **place.where)
    assert place.files() == []


@pytest.mark.parametrize(
    "change",
    [
        {"__snakepit_shm_loan__": 2},
        {"__snakepit_shm_loan__": True},
        {"name": None},
        {"namespace": 1},
        {"size": "1"},
        {"token": 0},
        {"dtype": 4},
        {"dtype": "no such type"},
        {"dtype": "(1,", "shape": [1]},
        {"dtype": "i4,,", "shape": [1]},
        {"dtype": "i4,f8", "shape": [1]},
        {"dtype": "\0", "shape": [1]},
        {"shape": "3", "dtype": "|u1"},
        {"shape": [-1], "dtype": "|u1"},
        {"shape": [True], "dtype": "|u1"},
        {"more": 1},
    ],
)
def test_a_loan_that_was_changed_is_refused(place: Place, change: dict[str, Any]) -> None:
    loan = {
        "__snakepit_shm_loan__": 1,
        "name": "x",
        "namespace": "ns",
        "size": 4096,
        "token": "0" * 32,
    }
    with pytest.raises(shm.InvalidHandleError):
        shm.borrow({**loan, **change}, dir=place.dir)
    for key in loan:
        with pytest.raises(shm.InvalidHandleError):
            shm.borrow({k: v for k, v in loan.items() if k != key}, dir=place.dir)
    for none in ["{", "[]", "1", json.dumps({**loan, **change})]:
        with pytest.raises(shm.InvalidHandleError):
            shm.borrow(none, dir=place.dir)


def test_hostile_names_dtypes_and_shapes_are_refused_and_leave_it_lent(place: Place) -> None:
    loan = lend(place)
    for name in ["../x", "a/b", "", "x" * 1000]:
        with pytest.raises(shm.ShmError), shm.borrow({**loan, "name": name}, dir=place.dir):
            pass
    for dtype, shape in [("O", [1]), ("<f4", [2**31, 2**31]), ("<f4", [2**20]), ("<f4", [0])]:
        hostile = {**loan, "dtype": dtype, "shape": shape}
        with pytest.raises(shm.ShmError), shm.borrow(hostile, dir=place.dir):
            pass
    for ttl in [0, -1, float("nan"), float("inf")]:
        with pytest.raises(shm.InvalidOptionError):
            shm.borrow(loan, ttl=ttl, dir=place.dir)
    with shm.borrow(loan, shape=1, dir=place.dir) as array:
        array[:] = 0
    shm.remove("lent", **place.where)
    assert place.files() == []


def test_a_borrower_that_is_killed_leaves_it_to_the_next(place: Place) -> None:
    loan = lend(place, dtype="|u1", shape=[3])
    with place.attach("lent"):  # as its owner does
        killed = place.start(
            f"""
            import os, signal, snakepit_shm
            with snakepit_shm.borrow({json.dumps(loan)!r}, dir={str(place.dir)!r}) as array:
                array[:] = 9
                os.kill(os.getpid(), signal.SIGKILL)
            """
        )
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        assert not shm.inspect("lent", **place.where)["writer_alive"]
        with (borrowed := shm.borrow(loan, dir=place.dir)) as array:
            array[:] = 3
    assert place.resolve(borrowed.handle).tolist() == [3, 3, 3]
    place.release(borrowed.handle)
    assert place.files() == []
