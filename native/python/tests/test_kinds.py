"""Everything that can be shared comes back as what it was, in this process and in another."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings

import snakepit_shm as shm
from arrays_of_any_kind import PROPERTY, arrays, octets
from conftest import PATIENCE, Place
from snakepit_shm import _elements


@given(array=arrays())
@PROPERTY
def test_arrays_come_back_as_they_were(place: Place, array: np.ndarray[Any, Any]) -> None:
    handle = place.share(array)
    got = place.resolve(json.dumps(handle))
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert octets(got) == octets(array)
    assert not got.flags.writeable
    assert got.flags.c_contiguous == (array.flags.c_contiguous or not array.flags.f_contiguous)
    assert got.flags.f_contiguous or not array.flags.f_contiguous
    own = place.resolve(handle, copy=True)
    assert own.flags.writeable
    assert not np.shares_memory(own, got)
    assert octets(own) == octets(array)
    as_bytes = place.resolve(handle, as_="memoryview", copy=False)
    assert as_bytes.nbytes == array.nbytes
    place.release(handle)


ECHO = """
import json, sys, snakepit_shm as shm
for line in sys.stdin:
    handle = json.loads(line)
    array = shm.resolve(handle, copy=False)
    again = shm.share(array, transfer=True)
    shm.release(handle)
    print(json.dumps([again, repr(array.dtype), list(array.shape)]), flush=True)
"""


@pytest.fixture
def echo(place: Place) -> Iterator[subprocess.Popen[str]]:
    """A worker that shares what it resolves."""
    process = place.start(ECHO)
    yield process
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")


@given(array=arrays())
@settings(PROPERTY, max_examples=150)
def test_arrays_come_back_from_another_process(
    place: Place, echo: subprocess.Popen[str], array: np.ndarray[Any, Any]
) -> None:
    assert echo.stdin is not None
    assert echo.stdout is not None
    handle = place.share(array)
    echo.stdin.write(json.dumps(handle) + "\n")
    echo.stdin.flush()
    again, dtype, shape = json.loads(echo.stdout.readline())
    assert (dtype, shape) == (repr(place_dtype(array)), list(array.shape))
    got = place.resolve(again)
    assert got.dtype == array.dtype
    assert octets(got) == octets(array)
    assert got.flags.f_contiguous or not array.flags.f_contiguous
    del got
    place.release(again)
    place.release(handle)  # gone already; what this process held of it goes quietly
    assert place.files() == []


def place_dtype(array: np.ndarray[Any, Any]) -> np.dtype[Any]:
    """As a handle carries it: without the flag that it was aligned."""
    dtype = array.dtype
    if dtype.names is None:
        return dtype
    return _elements._dtype(_elements.storage_of(dtype).element or "")


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.array([object()]), "holds objects"),
        (np.array(["x"], np.dtypes.StringDType()), "holds objects"),
        (np.zeros(2, [("a", "i4"), ("b", "O")]), "holds objects"),
        (np.zeros(2, np.dtype([])), "no bytes"),
        (np.zeros(2, ml_dtypes.int4), "only bfloat16"),
        (np.zeros(2, [("b", ml_dtypes.bfloat16)]), "plain dtype"),
        (np.zeros(2, [(("title", "a"), "i4")]), "titles"),
        (np.zeros(2, [("x" * 5000, "i4")]), "at most 4096"),
        (np.zeros(1, "V1000000"), "1000000"),
        (np.zeros((1,) * 7), "7 dimensions"),
        (np.ma.masked_array([1, 2], [True, False]), "filled"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_arrays_that_cannot_be_shared_say_why(place: Place, array: Any, why: str) -> None:
    with pytest.raises((shm.UnsupportedError, shm.InvalidOptionError), match=why):
        place.share(array)
    assert place.files() == []


def deep(levels: int) -> str:
    record: Any = "<i4"
    for _ in range(levels):
        record = {"names": ["a"], "formats": [record], "offsets": [0], "itemsize": 4}
    return json.dumps(record)


HOSTILE_ELEMENTS = [
    "O", "|O8", "object", "i4", "<i4,<i4", "(2,)<i4", "<i8", "<f3", "T", "V4", "|V4", "int4",
    "__import__", "ml_dtypes.bfloat16", "bfloat16\0", "<M8[zz]", "<U99999999999", "<i" + "9" * 4000,
    "{}", "{", "{]", "[]", "null", "{" * 2000, '{"names":' * 400, "\x80\x04cos\nsystem\n.",
    '{"names":["a"],"formats":["|O8"],"offsets":[0],"itemsize":4}',
    '{"names":["a"],"formats":["<i4"],"offsets":[-4],"itemsize":4}',
    '{"names":["a"],"formats":["<i4"],"offsets":[2],"itemsize":4}',
    '{"names":["a"],"formats":["<i4"],"offsets":[0],"itemsize":8}',
    '{"names":["a"],"formats":["<i4"],"offsets":[0.0],"itemsize":4}',
    '{"names":["a","a"],"formats":["<i2","<i2"],"offsets":[0,2],"itemsize":4}',
    '{"names":"a","formats":"x","offsets":"y","itemsize":"z"}',
    '{"names":null,"formats":null,"offsets":null,"itemsize":null}',
    '{"names":["a"],"formats":[["<i4",[1073741824,1073741824]]],"offsets":[0],"itemsize":4}',
    '{"names":["a"],"formats":[["<i4",[-1]]],"offsets":[0],"itemsize":4}',
    '{"names":["a"],"formats":[[]],"offsets":[0],"itemsize":4}',
    '{"names":[["a","b"]],"formats":["<i4"],"offsets":[0],"itemsize":4}',
    deep(9), deep(60),
]  # fmt: skip


@pytest.mark.parametrize("element", HOSTILE_ELEMENTS, ids=lambda e: ascii(e)[:30])
def test_hostile_elements_are_refused(place: Place, element: str) -> None:
    handle = place.share(np.zeros(3, "V4"))
    with pytest.raises(shm.InvalidHandleError):
        place.resolve({**handle, "element": element})
    assert place.resolve(handle).dtype == np.dtype("V4")
    place.release(handle)


@given(element=st.text(max_size=80) | st.from_regex(r"[<>|]?[A-Za-z?]{0,9}[0-9]{0,3}(\[.{0,5}\])?"))
@settings(PROPERTY, max_examples=200)
def test_no_element_harms_the_interpreter(place: Place, element: str) -> None:
    handle = place.share(np.zeros(3, "V4"))
    try:
        got = place.resolve({**handle, "element": element})
    except shm.InvalidHandleError:
        pass
    else:
        assert got.dtype.itemsize == 4
        assert not got.dtype.hasobject
    place.release(handle)


@pytest.mark.parametrize("depth", [10, 1000, 100_000])
def test_deep_json_is_refused(place: Place, depth: int) -> None:
    with pytest.raises(shm.InvalidHandleError):
        place.resolve('{"shape":' + "[" * depth + "]" * depth + "}")
    with pytest.raises(shm.InvalidHandleError):
        place.release('{"a":' * depth + "1" + "}" * depth)


def table(rows: int = 1000) -> Any:
    return pa.table(
        {
            "i": pa.array(range(rows), pa.int64()),
            "f": pa.array([i / 7 for i in range(rows)], pa.float64()),
            "b": pa.array([i % 3 == 0 for i in range(rows)]),
            "s": pa.array([f"row {i}" if i % 7 else None for i in range(rows)]),
            "t": pa.array([i * 1000 for i in range(rows)], pa.timestamp("us")),
        }
    )


def test_tables_in_every_form(place: Place) -> None:
    original = table()
    for obj in (original, original.to_batches()[0], original.to_pandas(), pl.DataFrame(original)):
        handle = place.share(obj)
        assert place.resolve(handle).num_rows == 1000
        frame = place.resolve(handle, as_="pandas")
        pd.testing.assert_frame_equal(frame, original.to_pandas())
        polars = place.resolve(handle, as_="polars")
        assert polars.equals(pl.DataFrame(original))
        assert place.resolve(handle, as_="arrow").to_pydict() == original.to_pydict()
        with pytest.raises(shm.UnsupportedError, match="take a column"):
            place.resolve(handle, as_="numpy")
        place.release(handle)


@pytest.mark.parametrize("name", ["x", "", None, 7])
def test_series_keep_their_name_and_index(place: Place, name: Any) -> None:
    series = pd.Series([1.5, 2.5, None], index=["a", "b", "c"], name=name)
    handle = place.share(series)
    got = place.resolve(handle, as_="pandas")
    pd.testing.assert_series_equal(got, series)
    place.release(handle)
    if isinstance(name, str):
        column = pl.Series(name, [1, None, 3])
        handle = place.share(column)
        assert place.resolve(handle, as_="polars").equals(column, check_names=True)
        place.release(handle)


def test_arrow_arrays_come_back_as_arrays(place: Place) -> None:
    array = pa.array([1, 2, None], pa.int32())
    for obj, wanted in ((array, array), (pa.chunked_array([array, array]), None)):
        handle = place.share(obj)
        got = place.resolve(handle)
        assert got.equals(obj if wanted is None or not isinstance(got, pa.Array) else wanted)
        assert place.resolve(handle, as_="polars").to_list() == obj.to_pylist()
        with pytest.raises(shm.CopyNeededError):
            place.resolve(handle, as_="numpy", copy=False)
        assert np.isnan(place.resolve(handle, as_="numpy")[2])
        place.release(handle)


def test_tables_and_columns_without_rows(place: Place) -> None:
    frame = pd.DataFrame({"a": np.array([], "f8"), "s": np.array([], object)})
    handle = place.share(frame)
    assert place.resolve(handle, as_="pandas").shape == (0, 2)
    assert place.resolve(handle, as_="polars").shape == (0, 2)
    place.release(handle)
    series = pd.Series([], dtype="f8", name="x")
    handle = place.share(series)
    pd.testing.assert_series_equal(place.resolve(handle, as_="pandas", copy=False), series)
    place.release(handle)
    array = pa.array([], pa.int64())
    handle = place.share(array)
    assert place.resolve(handle).equals(array)
    assert place.resolve(handle, as_="numpy", copy=False).shape == (0,)
    assert place.resolve(handle, as_="pandas").size == 0
    place.release(handle)


@pytest.mark.parametrize(
    "series",
    [
        pl.Series("e", ["y", "x"], dtype=pl.Enum(["x", "y", "z"])),
        pl.Series("c", ["y", "x", "y"], dtype=pl.Categorical),
        pl.Series("t", [1, None], dtype=pl.Datetime("ns", "Europe/Berlin")),
        pl.Series("l", [[1], [], None]),
    ],
    ids=["enum", "categorical", "time zone", "lists"],
)
def test_series_of_polars_keep_their_type(place: Place, series: pl.Series) -> None:
    handle = place.share(series)
    got = place.resolve(handle, as_="polars")
    assert got.dtype == series.dtype
    assert got.equals(series, check_names=True)
    place.release(handle)


def test_columns_that_a_library_does_not_know_are_refused(place: Place) -> None:
    union = pa.UnionArray.from_sparse(
        pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]
    )
    handle = place.share(union)
    for form in ("pandas", "polars", "numpy"):
        with pytest.raises(shm.UnsupportedError, match="as_='arrow'"):
            place.resolve(handle, as_=form)
    assert place.resolve(handle, as_="arrow").equals(union)
    place.release(handle)


def test_times_of_many_units_are_the_same_times_in_every_form(place: Place) -> None:
    for dtype in ("M8[25us]", "m8[3s]", "M8[s]", "M8[10ns]", "m8[ms]", ">M8[7ms]"):
        array = np.array([0, 1, 7, -3]).astype(dtype)
        handle = place.share(array)
        for form in ("arrow", "polars"):
            got = np.asarray(place.resolve(handle, as_=form))
            assert (got == array).all(), (dtype, form)
        place.release(handle)


def test_a_copy_is_said_to_be_one(place: Place) -> None:
    """What pandas or polars converts is refused with ``copy=False``, and counted without."""
    converted = [
        ("pandas", np.arange(3).astype("M8[D]")),
        ("pandas", np.zeros((2, 2), "M8[h]")),
        ("pandas", np.array(["a", "b"])),
        ("pandas", np.zeros(3, [("a", "i4"), ("b", "f8")])),
        ("polars", np.arange(3).astype("M8[s]")),
        ("polars", pa.table({"a": pa.array([1, 2], pa.timestamp("s"))})),
        ("polars", pa.table({"a": pa.array([1, 2], pa.time64("us"))})),
    ]
    for form, value in converted:
        handle = place.share(value)
        before = shm.copy_stats()
        with pytest.raises(shm.CopyNeededError, match=form):
            place.resolve(handle, as_=form, copy=False)
        got = place.resolve(handle, as_=form)
        assert len(got) == len(value)
        assert shm.copy_stats().resolved_copied == before.resolved_copied + 1
        place.release(handle)
    for form, unit in (("arrow", "ns"), ("polars", "us"), ("pandas", "s")):
        array = np.arange(3).astype(f"m8[{unit}]")
        handle = place.share(array)
        got = place.resolve(handle, as_=form, copy=False)
        assert (np.asarray(got) == array).all()
        del got
        place.release(handle)


def test_records_as_frames(place: Place) -> None:
    records = np.array([(1, 2.5), (3, 4.5)], [("a", "i4"), ("b", "f8")])
    handle = place.share(records)
    frame = place.resolve(handle, as_="pandas")
    assert frame["a"].tolist() == [1, 3]
    assert frame["b"].tolist() == [2.5, 4.5]
    place.release(handle)
    for array in (
        np.zeros(2, [("a", "i4", 2)]),
        np.zeros(2, "M8"),
        np.arange(2).astype("M8[25us]"),
    ):
        handle = place.share(array)
        with pytest.raises(shm.UnsupportedError, match="pandas does not take"):
            place.resolve(handle, as_="pandas")
        place.release(handle)


def test_what_offers_an_arrow_stream(place: Place) -> None:
    class Stream:
        def __arrow_c_stream__(self, requested_schema: object = None) -> Any:
            return table(5).__arrow_c_stream__(requested_schema)

    handle = place.share(Stream())
    assert place.resolve(handle).equals(table(5))
    place.release(handle)


@pytest.mark.parametrize(
    "obj",
    [pd.DataFrame({"a": [object()]}), pl.DataFrame({"a": [object()]}),
     pl.Series("a", [object()], dtype=pl.Object), pd.Series([1, "x"])],
    ids=["pandas", "polars", "polars series", "pandas series"],
)  # fmt: skip
def test_columns_of_objects_are_refused(place: Place, obj: Any) -> None:
    with pytest.raises(shm.UnsupportedError, match="no Arrow table"):
        place.share(obj)
    assert place.files() == []


def test_columns_and_frames_of_arrays(place: Place) -> None:
    handle = place.share(np.arange(6.0))
    assert place.resolve(handle, as_="pandas").tolist() == list(range(6))
    assert place.resolve(handle, as_="polars").to_list() == list(range(6))
    assert place.resolve(handle, as_="arrow").to_pylist() == list(range(6))
    place.release(handle)
    handle = place.share(np.arange(6.0).reshape(2, 3))
    assert place.resolve(handle, as_="pandas").shape == (2, 3)
    for form in ("polars", "arrow"):
        with pytest.raises(shm.UnsupportedError, match="one dimension"):
            place.resolve(handle, as_=form)
    place.release(handle)
    handle = place.share(b"bytes")
    for form in ("arrow", "pandas", "polars"):
        with pytest.raises(shm.UnsupportedError, match="holds bytes"):
            place.resolve(handle, as_=form)
    assert place.resolve(handle, as_="numpy").tolist() == list(b"bytes")
    assert place.resolve(handle, as_="bytes") == b"bytes"
    place.release(handle)


def test_forms_and_copies_that_do_not_exist(place: Place) -> None:
    handle = place.share(b"x")
    for form in ("jax", "", 3, ["numpy"]):
        with pytest.raises(shm.InvalidOptionError, match="as_"):
            place.resolve(handle, as_=form)
    for copy in ("never", [], 2):
        with pytest.raises(shm.InvalidOptionError, match="copy"):
            place.resolve(handle, copy=copy)
    place.release(handle)


class Tensor:
    """A stand-in for a tensor of another library: DLPack, on any device."""

    def __init__(self, array: Any, device: tuple[int, int] = (1, 0)) -> None:
        self.array = array
        self.device = device

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


@pytest.mark.parametrize("order", ["C", "F"])
def test_tensors_come_by_dlpack(place: Place, order: Any) -> None:
    array = np.arange(24, dtype="f2").reshape(2, 3, 4).copy(order)
    handle = place.share(Tensor(array))
    got = place.resolve(handle)
    assert (got == array).all()
    assert got.flags.f_contiguous == (order == "F")
    again = np.from_dlpack(got)
    assert np.shares_memory(again, got)
    place.release(handle)


def test_tensors_that_cannot_be_shared_say_why(place: Place) -> None:
    with pytest.raises(shm.UnsupportedError, match=r"2:1 \(DLPack\)"):
        place.share(Tensor(np.zeros(3), (2, 1)))
    for device in (3, (), ("CPU", 0), (1, 0, 0)):
        with pytest.raises(shm.UnsupportedError, match="no such tensor"):
            place.share(Tensor(np.zeros(3), device))  # type: ignore[arg-type]

    class Bfloat(Tensor):
        def __dlpack__(self, **_keywords: Any) -> Any:
            raise BufferError("bfloat16 is not supported")

    with pytest.raises(shm.UnsupportedError, match="bfloat16"):
        place.share(Bfloat(np.zeros(3)))
    assert place.files() == []
