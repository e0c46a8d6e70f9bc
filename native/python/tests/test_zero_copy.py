"""That nothing is copied: by address, and by the pages that resolving and reading fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import snakepit_shm as shm
from conftest import FEW_FAULTS, Place, faults, place_of

ITEMS = 1 << 22
"""32 MiB of doubles: 8,192 pages."""


def numbers() -> Any:
    return np.arange(ITEMS, dtype="f8")


def numbers_in_a_table() -> Any:
    return pa.table({"x": numbers(), "y": numbers()[::-1].copy()})


ADDRESSES: dict[str, tuple[Callable[[], Any], str | None, Callable[[Any], list[int]]]] = {
    "numpy": (numbers, "numpy", lambda a: [a.ctypes.data]),
    "numpy, Fortran": (
        lambda: np.asfortranarray(numbers().reshape(64, -1)),
        None,
        lambda a: [a.ctypes.data],
    ),
    "memoryview": (numbers, "memoryview", lambda v: [np.frombuffer(v, "u1").ctypes.data]),
    "dlpack": (numbers, "numpy", lambda a: [np.from_dlpack(a).ctypes.data]),
    "arrow table": (
        numbers_in_a_table,
        "arrow",
        lambda t: [c.chunk(0).buffers()[1].address for c in t.columns],
    ),
    "arrow array": (numbers, "arrow", lambda a: [a.buffers()[1].address]),
    "polars frame": (
        lambda: pl.DataFrame({"x": numbers(), "y": numbers()}),
        "polars",
        lambda f: [s.to_arrow().buffers()[1].address for s in f.get_columns()],
    ),
    "polars series": (
        lambda: pl.Series("x", numbers()),
        "polars",
        lambda s: [s.to_arrow().buffers()[1].address],
    ),
    "polars of an array": (numbers, "polars", lambda s: [s.to_arrow().buffers()[1].address]),
    "pandas frame": (
        lambda: pd.DataFrame({"x": numbers(), "y": numbers()}),
        "pandas",
        lambda f: [f[name].to_numpy().ctypes.data for name in f],
    ),
    "pandas series": (
        lambda: pd.Series(numbers()),
        "pandas",
        lambda s: [s.to_numpy().ctypes.data],
    ),
    "pandas of an array": (
        lambda: numbers().reshape(-1, 2),
        "pandas",
        lambda f: [f.to_numpy().ctypes.data],
    ),
}


@pytest.mark.parametrize("kind", ADDRESSES)
def test_what_is_resolved_lies_in_the_segment(place: Place, kind: str) -> None:
    make, form, addresses = ADDRESSES[kind]
    handle = place.share(make())
    place.resolve(handle, as_=form)  # its library is imported
    where = place_of(place, handle)
    before, stats = faults(), shm.copy_stats()
    got = place.resolve(handle, as_=form, copy=False)
    assert faults() - before < FEW_FAULTS, "nothing was read and nothing written"
    assert shm.copy_stats().resolved_in_place == stats.resolved_in_place + 1
    found = addresses(got)
    assert found
    again = place_of(place, handle)
    assert all(address in where or address in again for address in found)
    own = place.resolve(handle, as_=form, copy=True)
    assert not any(address in where or address in again for address in addresses(own))
    assert shm.copy_stats().resolved_copied == stats.resolved_copied + 1
    del got, own
    place.release(handle)


def test_reading_a_recycled_mapping_faults_nothing(place: Place) -> None:
    data = numbers()
    for turn in range(3):
        handle = place.share(data)
        before = faults()
        got = place.resolve(handle)
        total = got.sum()
        faulted = faults() - before
        assert total == data.sum()
        del got
        place.release(handle)
        if turn:
            assert faulted < FEW_FAULTS, "of 8192 pages"


def test_another_process_resolves_without_a_fault_a_page(place: Place) -> None:
    handle = place.share(numbers())
    out = place.run(
        """
        import resource, sys, numpy, snakepit_shm
        def faults(): return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        snakepit_shm.release(snakepit_shm.share(b"everything is loaded"))
        before = faults()
        array = snakepit_shm.resolve(sys.argv[1], copy=False)
        print(faults() - before, array.nbytes)
        """,
        json.dumps(handle),
    )
    faulted, nbytes = map(int, out.split())
    assert nbytes == ITEMS * 8
    assert faulted < FEW_FAULTS
    place.release(handle)


def test_who_resolves_again_gets_the_same_memory(place: Place) -> None:
    handle = place.share(numbers())
    one = place.resolve(handle)
    two = place.resolve(dict(handle))
    assert one.ctypes.data == two.ctypes.data
    place.release(handle)
    with pytest.raises(shm.NotFoundError):  # also while it is looked at
        place.resolve(handle)
    newer = place.share(np.zeros(3), name=handle["name"])
    with pytest.raises(shm.NotFoundError):
        place.resolve(handle)
    assert place.resolve(newer).tolist() == [0] * 3
    place.release(newer)
    assert one[-1] == two[-1] == ITEMS - 1


def test_what_was_never_alike_is_not_the_same_memory(place: Place) -> None:
    handle = place.share(np.zeros((2, 3), "f4"))
    kept = place.resolve(handle)
    for field, value in (("shape", [3, 2]), ("dtype", "<i4"), ("version", 4), ("generation", 9)):
        with pytest.raises(shm.InvalidHandleError):
            place.resolve({**handle, field: value})
    assert kept.shape == (2, 3)
    place.release(handle)


@pytest.mark.parametrize(
    ("make", "form", "why"),
    [
        (lambda: b"x", "bytes", "own their memory"),
        (lambda: pa.table({"s": ["a", "b"]}), "polars", "converts column 's'"),
        (lambda: pa.table({"s": ["a", "b"]}), "pandas", "converts column 's'"),
        (lambda: pa.table({"i": [1, None]}), "pandas", "converts column 'i'"),
        (lambda: pa.array([1, None]), "numpy", "without a copy"),
        (lambda: np.ones(3, "?"), "arrow", "another form"),
        (lambda: np.ones(3, ">f8"), "polars", "another form"),
    ],
)
def test_where_a_copy_is_needed_it_is_said(
    place: Place, make: Callable[[], Any], form: str, why: str
) -> None:
    handle = place.share(make())
    with pytest.raises(shm.CopyNeededError, match=why):
        place.resolve(handle, as_=form, copy=False)
    before = shm.copy_stats()
    got = place.resolve(handle, as_=form)
    after = shm.copy_stats()
    assert after.resolved_copied == before.resolved_copied + 1
    assert after.resolved_copied_bytes == before.resolved_copied_bytes + handle["bytes"]
    assert len(got) == len(make())
    del got
    place.release(handle)
