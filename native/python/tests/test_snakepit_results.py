"""Results of Snakepit's tools: what JSON cannot carry is shared and given away."""

from __future__ import annotations

import base64
import json
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

import snakepit_shm as shm
from conftest import Place
from snakepit_shm.snakepit import (
    shared_arguments,
)
from tool_values import options, released, taken

pytestmark = pytest.mark.usefixtures("leave")


def test_results_that_json_cannot_carry_are_shared_and_given_away(place: Place) -> None:
    values = {
        "bytes": b"\x00\xff" * 10,
        "array": np.arange(3.0),
        "table": pa.table({"a": [1]}),
        "view": memoryview(b"view"),
        "deep": [1, (np.ones(2, "u1"), "text")],
    }

    @shared_arguments(options=options(place))
    def everything() -> Any:
        return {**values, "plain": {"n": 1.5, "none": None}}

    result = json.loads(json.dumps(everything()))
    assert not shm._share._shared
    assert taken(place, result["bytes"]) == values["bytes"]
    assert taken(place, result["array"]).tolist() == [0, 1, 2]
    assert taken(place, result["table"]).equals(values["table"])
    assert taken(place, result["view"]) == b"view"
    assert taken(place, result["deep"][1][0]).tolist() == [1, 1]
    assert result["deep"][1][1] == "text"
    assert result["plain"] == {"n": 1.5, "none": None}
    assert place.files() == []


def test_text_is_shared_from_the_threshold_on(place: Place) -> None:
    @shared_arguments(options=options(place, threshold=10))
    def repeat(count: int) -> str:
        return "é" * count

    assert repeat(4) == "éééé"
    assert taken(place, repeat(5)) == ("é" * 5).encode()
    lone = shared_arguments(options=options(place, threshold=1))(lambda: "\ud800" * 10)
    assert lone() == "\ud800" * 10
    assert place.files() == []


def test_values_without_a_byte_and_what_is_no_plain_bytes(place: Place) -> None:
    objects = np.array([object()])

    @shared_arguments(options=options(place))
    def odd() -> Any:
        return [b"", np.zeros((0, 3), "<f4"), np.float64(1.5), objects]

    empty, zeros, number, same = odd()
    assert empty["base64"] == ""
    assert (zeros["dtype"], zeros["shape"], zeros["reason"]) == ("<f4", [0, 3], None)
    assert number == 1.5
    assert same is objects
    back = shared_arguments(lambda *values: [v.shape for v in values])
    assert back(zeros) == [(0, 3)]
    assert place.files() == []


def test_what_cannot_be_shared_goes_in_base64_with_the_reason(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise shm.ResourceExhaustedError("full")

    monkeypatch.setattr("snakepit_shm._snakepit_wire.share", full)

    @shared_arguments(options=options(place))
    def result() -> Any:
        return {"a": np.arange(3, dtype="u1"), "t": pa.table({"a": [1]})}

    found = result()
    assert found["a"]["reason"] == "resource_exhausted"
    assert base64.b64decode(found["a"]["base64"]) == b"\x00\x01\x02"
    assert found["t"]["format"] == "arrow_ipc"
    back = shared_arguments(lambda value: (value["a"].tolist(), value["t"].num_rows))
    assert json.loads(json.dumps(back(found))) == [[0, 1, 2], 1]
    # More than a message holds is the error itself.
    monkeypatch.setattr("snakepit_shm._snakepit_wire.INLINE_MOST", 2)
    with pytest.raises(shm.ResourceExhaustedError):
        result()


def test_a_result_that_fails_half_way_leaves_nothing(place: Place) -> None:
    @shared_arguments(options=options(place))
    def result() -> Any:
        return [b"first", np.broadcast_to(np.uint8(1), ((1 << 30) + 1,))]

    with pytest.raises(shm.InvalidSizeError):
        result()
    assert place.files() == []


def test_what_inherits_from_objects_and_lists_is_looked_through(place: Place) -> None:
    class Pair(NamedTuple):
        array: Any
        n: int

    array = np.arange(3)
    plain = OrderedDict(a=1)

    @shared_arguments(options=options(place))
    def result() -> Any:
        return {
            "ordered": OrderedDict(a=array),
            "default": defaultdict(list, a=[array]),
            "pair": Pair(array, 2),
            "plain": plain,
        }

    found = result()
    assert found["plain"] is plain
    found = json.loads(json.dumps(found))
    assert taken(place, found["ordered"]["a"]).tolist() == [0, 1, 2]
    assert taken(place, found["default"]["a"][0]).tolist() == [0, 1, 2]
    assert taken(place, found["pair"][0]).tolist() == [0, 1, 2]
    assert found["pair"][1] == 2
    assert place.files() == []


def test_a_result_that_has_itself_in_it_is_refused_as_json_does(place: Place) -> None:
    endless: list[Any] = [np.arange(3)]
    endless.append({"again": endless})
    twice = [1]
    with pytest.raises(ValueError, match="Circular"):
        shared_arguments(options=options(place))(lambda: endless)()
    assert shared_arguments(options=options(place))(lambda: [twice, twice])() == [[1], [1]]
    assert place.files() == []


@pytest.mark.parametrize(
    "value",
    [
        np.array([(1, 2.5), (3, 4.5)], [("a", "<i2"), ("b", "<f8")]),
        np.zeros(0, [("a", "<i2"), ("b", "<f8")]),
        np.arange(3).astype("<M8[25us]"),
        np.array([1.5, 2], ml_dtypes.bfloat16),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.zeros(2, "V3"),
        pa.array([1, None, 3]),
        pl.DataFrame({"a": [1, None]}),
    ],
    ids=["records", "no records", "times", "bfloat16", "fortran", "void", "arrow", "polars"],
)
def test_what_goes_in_base64_comes_back_as_it_would_by_a_handle(
    place: Place, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise shm.ResourceExhaustedError("full")

    monkeypatch.setattr("snakepit_shm._snakepit_wire.share", full)
    found = json.loads(json.dumps(shared_arguments(options=options(place))(lambda: value)()))
    assert found["__snakepit_shm_inline__"] == 1
    seen: list[Any] = []
    shared_arguments(options=options(place))(seen.append)(found)
    monkeypatch.undo()
    handle = place.share(value)
    by_handle = place.resolve(handle)
    assert type(seen[0]) is type(by_handle)
    if isinstance(value, np.ndarray):
        assert seen[0].dtype == by_handle.dtype == value.dtype
        assert seen[0].tolist() == by_handle.tolist() == value.tolist()
    else:
        assert seen[0].equals(by_handle)
    del by_handle
    released(place, handle)


def values() -> st.SearchStrategy[Any]:
    """What a tool may return: JSON, with bytes and arrays in it."""
    dtypes = hnp.integer_dtypes(endianness="<") | hnp.boolean_dtypes()
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63)
        | st.floats(allow_nan=False)
        | st.text(max_size=20)
        | st.binary(max_size=20)
        | hnp.arrays(dtypes, hnp.array_shapes(max_dims=3, max_side=4, min_side=0))
    )
    keys = st.text(max_size=5)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=8,
    )


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


def handles_in(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for item in value:
            yield from handles_in(item)
    elif isinstance(value, dict):
        if "__snakepit_shm__" in value:
            yield value
        else:
            yield from handles_in(list(value.values()))


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(value=values())
def test_what_one_tool_returns_another_gets(place: Place, value: Any) -> None:
    same = shared_arguments(options=options(place, raw="bytes"))
    sent = json.loads(json.dumps(same(lambda: value)()))
    got: list[Any] = []
    same(got.append)(sent)
    assert equal(got[0], value)
    got.clear()
    for handle in handles_in(sent):
        place.release(handle)


def test_handles_that_the_tool_made_itself_stay_as_they_are(place: Place) -> None:
    handle = place.share(b"x" * 100)
    chunk = {"__snakepit_shm_chunk__": handle}
    assert shared_arguments(lambda: [handle, chunk])() == [handle, chunk]
    released(place, handle)


def test_half_a_gigabyte_comes_back(place: Place) -> None:
    size = 500_000_000

    @shared_arguments(options=options(place))
    def large() -> Any:
        return np.full(size, 7, "u1")

    handle = json.loads(json.dumps(large()))
    back = place.resolve(handle)
    assert back.nbytes == size
    assert back[0] == back[size // 2] == back[-1] == 7
    del back
    released(place, handle)
