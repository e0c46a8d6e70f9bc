"""Tools of Snakepit with large values, against a stand-in for its server (snakepit_stand_in.py)."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gc
import inspect
import json
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

import snakepit_shm as shm
from conftest import Place, until
from snakepit_shm import _snakepit_flow, _snakepit_member
from snakepit_shm.snakepit import (
    ArgumentsNotResolvedError,
    Flow,
    Options,
    SharedMemoryAdapter,
    StreamStalledError,
    shared_arguments,
)
from snakepit_stand_in import BaseAdapter, StreamChunk, ZeroCopyRef, request, stream, tool


@pytest.fixture(autouse=True)
def leave(place: Place) -> Iterator[None]:  # noqa: ARG001 - before the place is looked at
    """A worker stays in its namespace; a test's place has to be empty at its end."""
    yield
    _snakepit_member.leave_all()


def options(place: Place, **more: Any) -> Options:
    return Options(namespace=place.namespace, dir=place.dir, **more)


def taken(place: Place, value: Any) -> Any:
    """As the caller does: what a handle names, which is then removed."""
    value = value.get("data", value)
    if "__snakepit_shm_chunk__" in value:
        value = value["__snakepit_shm_chunk__"]
    resolved = place.resolve(value)
    if isinstance(resolved, memoryview):
        resolved = bytes(resolved)
    shm._native.remove_handle(json.dumps(value), place.dir)
    return resolved


def text(place: Place, data: bytes) -> dict[str, Any]:
    return {"__snakepit_shm_text__": place.share(data)}


def released(place: Place, *handles: Any) -> None:
    gc.collect()
    for handle in handles:
        place.release(handle)


# -- the decorator ---------------------------------------------------------------------------------


def test_handles_in_arguments_become_what_they_name_nested_too(place: Place) -> None:
    array = np.arange(6, dtype="f4").reshape(2, 3)
    table = pa.table({"a": [1, 2]})
    handles = [place.share(array), place.share(b"\xff\x00"), place.share(table)]
    seen: dict[str, Any] = {}

    @shared_arguments(options=options(place))
    def consume(first: Any, /, *, deep: Any, plain: Any) -> None:
        seen.update(first=first, deep=deep, plain=plain)

    plain = {"a": [1, {"b": None}]}
    consume(handles[0], deep={"list": [1, {"bytes": handles[1]}, [handles[2]]]}, plain=plain)
    assert seen["first"].tolist() == array.tolist()
    assert not seen["first"].flags.writeable
    assert bytes(seen["deep"]["list"][1]["bytes"]) == b"\xff\x00"
    assert seen["deep"]["list"][2][0].equals(table)
    assert seen["plain"] is plain
    seen.clear()
    released(place, *handles)


def test_text_is_text_and_bytes_are_bytes(place: Place) -> None:
    sent = [text(place, "héllo".encode()), text(place, b"\xff\xfe"), place.share(b"plain")]

    @shared_arguments(options=options(place))
    def kinds(values: list[Any]) -> list[str]:
        return [type(value).__name__ for value in values]

    @shared_arguments(options=options(place, raw="bytes"))
    def as_bytes(values: list[Any]) -> list[str]:
        return [repr(value) for value in values]

    assert kinds(sent) == ["str", "memoryview", "memoryview"]
    assert as_bytes(sent) == ["'héllo'", r"b'\xff\xfe'", "b'plain'"]
    released(place, *(s.get("__snakepit_shm_text__", s) for s in sent))


def test_inline_values_are_what_they_were() -> None:
    array = np.arange(4, dtype="<i2").reshape(2, 2)
    inline = {
        "__snakepit_shm_inline__": 1,
        "base64": base64.b64encode(array.tobytes()).decode(),
        "dtype": "<i2",
        "shape": [2, 2],
        "format": "numpy",
        "reason": None,
    }
    sink = pa.BufferOutputStream()
    table = pa.table({"a": [1]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    stream = base64.b64encode(sink.getvalue()).decode()
    forms = [
        inline,
        {**inline, "shape": None},
        {**inline, "dtype": None, "format": "raw"},
        {**inline, "format": "arrow_ipc", "base64": stream},
    ]
    seen: list[Any] = []
    shared_arguments(seen.extend)(forms)
    assert seen[0].tolist() == array.tolist()
    assert seen[1].tolist() == [0, 1, 2, 3]
    assert bytes(seen[2]) == array.tobytes()
    assert seen[3].equals(table)


HOSTILE: list[dict[str, Any]] = [
    {"__snakepit_shm__": 1},
    {"__snakepit_shm__": 1, "name": "../../etc/passwd", "namespace": "x"},
    {"__snakepit_shm_text__": {"__snakepit_shm__": 2}},
    {"__snakepit_shm_chunk__": {"__snakepit_shm__": None}},
    {"__snakepit_zero_copy__": True, "metadata": {"snakepit_shm": {}}},
    {"__snakepit_shm_inline__": 1},
    {"__snakepit_shm_inline__": 1, "base64": "%", "format": "raw", "dtype": None, "shape": None},
    {"__snakepit_shm_inline__": 1, "base64": "AA==", "format": "", "dtype": "O", "shape": None},
    {"__snakepit_shm_inline__": 1, "base64": "AA==", "format": "", "dtype": "u1", "shape": [2]},
    {"__snakepit_shm_inline__": 1, "base64": "AA==", "format": "", "dtype": "u1", "shape": "x"},
    {"__snakepit_shm_inline__": 1, "base64": 7, "format": "", "dtype": "u1", "shape": None},
    {
        "__snakepit_shm_inline__": 1,
        "base64": "AA==",
        "format": "arrow_ipc",
        "dtype": None,
        "shape": None,
    },
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda h: repr(h)[:40])
def test_what_cannot_be_resolved_is_named_and_the_tool_is_not_called(
    place: Place, hostile: dict[str, Any]
) -> None:
    @shared_arguments(options=options(place))
    def never(value: Any) -> None:
        raise AssertionError(f"called with {value}")

    with pytest.raises(ArgumentsNotResolvedError) as caught:
        never([{"deep": hostile}])
    # By this the Elixir side knows that it may call again (bridge/wire.ex).
    assert str(caught.value).startswith("[snakepit-shm: arguments not resolved] ")
    assert isinstance(caught.value.__cause__, shm.ShmError)


def test_a_region_that_is_gone_is_named(place: Place) -> None:
    handle = place.share(b"x")
    place.release(handle)
    with pytest.raises(ArgumentsNotResolvedError, match="not_found"):
        shared_arguments(options=options(place))(print)(handle)


def test_a_zero_copy_reference_of_snakepit_is_what_it_carries(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("snakepit_bridge.zero_copy")
    module.ZeroCopyRef = ZeroCopyRef  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "snakepit_bridge.zero_copy", module)
    handle = place.share(np.arange(3))
    payload = {"__snakepit_zero_copy__": True, "metadata": {"snakepit_shm": handle}, "ref": "x"}

    @shared_arguments(options=options(place))
    def total(a: Any, b: Any) -> int:
        return int(a.sum() + b.sum())

    assert total(payload, ZeroCopyRef(payload)) == 6
    other = ZeroCopyRef({"metadata": {}})
    assert shared_arguments(lambda value: value is other)(other)
    released(place, handle)


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
    released(place, *handles_in(sent))


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


def test_every_kind_of_function_stays_what_it_is() -> None:
    def plain(a: int, *, b: str = "x") -> None:
        """Plain."""

    async def coroutine() -> None: ...
    def generator() -> Iterator[None]:
        yield

    async def async_generator() -> AsyncIterator[None]:
        yield

    kinds = (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    )
    for function in (plain, coroutine, generator, async_generator):
        wrapped = shared_arguments(function)
        assert [kind(wrapped) for kind in kinds] == [kind(function) for kind in kinds]
        assert wrapped.__name__ == function.__name__
        assert inspect.signature(wrapped) == inspect.signature(function)
    assert shared_arguments(plain).__doc__ == "Plain."


def test_options_out_of_range_are_refused() -> None:
    for wrong in ({"threshold": 0}, {"raw": "str"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Options(**wrong)  # type: ignore[arg-type]
    for wrong_flow in ({"max_chunks": 0}, {"max_bytes": 0}, {"timeout": 0.0}):
        with pytest.raises(ValueError, match="positive"):
            Flow(**wrong_flow)  # type: ignore[arg-type]


# -- with Snakepit's adapters ----------------------------------------------------------------------


def adapters(place: Place) -> list[type[Any]]:
    """The same tools: decorated below and above Snakepit's decorator, and by the mix-in."""
    decorate = shared_arguments(options=options(place))

    class Below(BaseAdapter):
        @tool(description="Twice")
        @decorate
        def double(self, values: Any, name: str = "x") -> Any:
            return {"name": name, "values": values * 2}

        @tool(description="Later")
        @decorate
        async def later(self, values: Any) -> Any:
            await asyncio.sleep(0)
            return values * 3

        def execute_tool(self, tool_name: str, arguments: dict[str, Any], context: Any) -> Any:
            assert context == "context"
            return self.call_tool(tool_name, **arguments)

    class Above(Below):
        @decorate
        @tool(description="Twice")
        def double(self, values: Any, name: str = "x") -> Any:
            return {"name": name, "values": values * 2}

    class Mixed(SharedMemoryAdapter, BaseAdapter):
        shared_memory = options(place)

        @tool(description="Twice")
        def double(self, values: Any, name: str = "x") -> Any:
            return {"name": name, "values": values * 2}

        @tool(description="Later")
        async def later(self, values: Any) -> Any:
            await asyncio.sleep(0)
            return values * 3

    class Own(SharedMemoryAdapter, BaseAdapter):
        shared_memory = options(place)

        async def initialize(self) -> None:
            self.ready = True

        @tool(description="Twice")
        @decorate
        def double(self, values: Any, name: str = "x") -> Any:
            return {"name": name, "values": values * 2}

        async def later(self, values: Any) -> Any:
            return values * 3

        async def execute_tool(
            self, tool_name: str, arguments: dict[str, Any], context: Any
        ) -> Any:
            assert (self.ready, context) == (True, "context")
            result = self.call_tool(tool_name, **arguments)
            if inspect.iscoroutine(result):
                result = await result
            if tool_name == "double":  # what the tool answered, and not a handle
                assert isinstance(result["values"], np.ndarray)
            return result

    class Further(Own):
        pass

    return [Below, Above, Mixed, Own, Further]


@pytest.mark.parametrize("number", range(5), ids=["below", "above", "mix-in", "own", "subclass"])
def test_tools_of_an_adapter_get_and_return_arrays(place: Place, number: int) -> None:
    adapter = adapters(place)[number]
    handle = place.share(np.arange(5))
    result = request(adapter, "double", {"values": handle, "name": "n"})
    assert result["name"] == "n"
    assert taken(place, result["values"]).tolist() == [0, 2, 4, 6, 8]
    assert taken(place, request(adapter, "later", {"values": handle})).tolist() == [0, 3, 6, 9, 12]
    assert adapter().get_tools()["double"] == ("Twice", ["values", "name"])
    with pytest.raises(AttributeError):
        request(adapter, "no_such_tool", {})
    with pytest.raises(ArgumentsNotResolvedError):
        request(adapter, "double", {"values": {**handle, "token": "0" * 32}})
    released(place, handle)
    assert place.files() == []


def test_a_tool_that_calls_another_gets_its_values(place: Place) -> None:
    decorate = shared_arguments(options=options(place))

    @decorate
    def ones(n: int) -> Any:
        return np.ones(n)

    @decorate
    def parts(n: int) -> Iterator[Any]:
        for _ in range(n):
            yield np.ones(1)

    @decorate
    async def later(n: int) -> Any:
        return ones(n)

    @decorate
    async def total(n: int) -> float:
        return float(ones(n).sum() + sum(p.sum() for p in parts(n)) + (await later(n)).sum())

    assert asyncio.run(total(4)) == 12
    assert place.files() == []


def test_many_threads_and_instances_at_once(place: Place) -> None:
    """The thread profile: one process, an instance a request, many requests at once."""
    adapter = adapters(place)[2]
    handles = [place.share(np.full(1000, n)) for n in range(4)]

    def call(n: int) -> int:
        instance = adapter()
        result = instance.execute_tool("double", {"values": handles[n % 4]}, None)
        return int(taken(place, result["values"])[0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(200))) == [2 * (n % 4) for n in range(200)]
    released(place, *handles)
    assert place.files() == []


def test_a_worker_stays_in_its_namespace(place: Place) -> None:
    """Else each request would register anew, and the last one to leave clears up."""
    give = shared_arguments(options=options(place))(lambda: b"x")
    take = shared_arguments(options=options(place))(type)
    taken(place, give())
    table = place.dir / f"{place.namespace}.participants"
    before = table.stat().st_ino
    for _ in range(3):
        taken(place, give())
        handle = place.share(b"x")
        take(handle)
        released(place, handle)
        assert table.stat().st_ino == before
    shm.drain_pool(**place.where)
    _snakepit_member.leave_all()
    until(lambda: not table.exists(), "the end of the last mapping")
    # A second time, and after it.
    _snakepit_member.leave_all()
    taken(place, give())
    assert table.exists()


# -- streams ---------------------------------------------------------------------------------------


class Consumer:
    """Takes chunks as Elixir does: resolves each and removes it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.values: list[Any] = []
        self.most = 0

    def __call__(self, chunk: Any) -> None:
        self.most = max(self.most, len(self.place.files()) // 2)
        self.values.append(taken(self.place, chunk["data"]).tolist())


def streams(place: Place, flow: Flow) -> type[Any]:
    class Streams(SharedMemoryAdapter, BaseAdapter):
        shared_memory = options(place, flow=flow)
        ended: list[str] = []  # noqa: RUF012 - what happened, for the test

        @tool(supports_streaming=True)
        def sync(self, n: int, start: Any) -> Iterator[Any]:
            try:
                for i in range(n):
                    yield StreamChunk({"data": start + i})
            finally:
                self.ended.append("sync")

        @tool(supports_streaming=True)
        async def asynchronous(self, n: int, start: Any) -> AsyncIterator[Any]:
            try:
                for i in range(n):
                    await asyncio.sleep(0)
                    yield {"data": start + i}
            finally:
                self.ended.append("asynchronous")

        def iterator(self, n: int, start: Any) -> Any:
            return iter([{"data": start + i} for i in range(n)])

    return Streams


@pytest.mark.parametrize("name", ["sync", "asynchronous", "iterator"])
def test_chunks_travel_as_handles_and_are_taken(place: Place, name: str) -> None:
    adapter = streams(place, Flow(max_chunks=3))
    start = place.share(np.zeros(4))
    consumer = Consumer(place)
    stream(adapter, name, {"n": 20, "start": start}, consumer)
    assert consumer.values == [[i] * 4 for i in range(20)]
    released(place, start)
    until(lambda: not shm._share._shared, "nothing held of what was taken")
    assert place.files() == []


def test_chunks_of_each_form_keep_it(place: Place) -> None:
    """Snakepit puts keys of its own into objects, and reads ``data`` and ``is_final`` of others."""

    @dataclasses.dataclass(frozen=True)
    class Part:
        data: Any
        is_final: bool = False

    own = place.share(b"own")

    @shared_arguments(options=options(place))
    def parts() -> Iterator[Any]:
        yield {"n": 1, "value": b"one"}
        yield b"two"
        yield StreamChunk(b"three", is_final=True)
        yield Part({"value": b"four"})
        yield "five"
        yield own

    one, two, three, four, five, six = list(parts())
    assert one["n"] == 1
    assert taken(place, one["value"]) == b"one"
    assert list(two) == ["data"]
    assert taken(place, two) == b"two"
    assert isinstance(three, StreamChunk)
    assert three.is_final
    assert taken(place, three.data) == b"three"
    assert isinstance(four, Part)
    assert taken(place, four.data["value"]) == b"four"
    assert (five, six) == ("five", {"data": own})
    released(place, own)


def held(place: Place) -> int:
    return len([f for f in place.files() if f.endswith(".meta")])


@pytest.mark.parametrize("flow", [Flow(max_chunks=2), Flow(max_bytes=2 * 32)], ids=["2", "bytes"])
def test_a_stream_is_no_further_ahead_than_it_may_be(place: Place, flow: Flow) -> None:
    decorated = shared_arguments(options=options(place, flow=flow))
    made: list[int] = []

    @decorated
    def numbers() -> Iterator[Any]:
        for i in range(6):
            made.append(i)
            yield np.full(4, i)

    chunks = numbers()
    waiting = [next(chunks), next(chunks)]
    assert (held(place), made) == (2, [0, 1])
    third: list[Any] = []
    thread = threading.Thread(target=lambda: third.append(next(chunks)))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()  # it waits,
    assert held(place) == 2
    assert made == [0, 1, 2]  # with the next one made, and not shared
    # In any order.
    assert taken(place, waiting.pop()).tolist() == [1] * 4
    thread.join()
    assert (held(place), made) == (2, [0, 1, 2])
    waiting += third
    for i in range(3, 6):
        assert taken(place, waiting.pop(0)) is not None
        waiting.append(next(chunks))
        assert (held(place), made[-1]) == (2, i)
    assert list(chunks) == []  # the end waits for nobody
    for chunk in waiting:
        taken(place, chunk)
    until(lambda: not shm._share._shared, "nothing held of what was taken")


def test_a_consumer_that_takes_nothing_ends_the_stream_and_leaves_nothing(place: Place) -> None:
    adapter = streams(place, Flow(max_chunks=2, timeout=0.2))
    for name in ("sync", "asynchronous"):
        got: list[Any] = []
        stream(adapter, name, {"n": 9, "start": 0}, got.append)  # plain numbers need no room
        start = place.share(np.zeros(4))
        with pytest.raises(StreamStalledError, match="no chunk was taken") as caught:
            stream(adapter, name, {"n": 9, "start": start}, got.append)
        released(place, start)
        assert isinstance(caught.value, TimeoutError)
        assert len(got) == 11
        assert adapter.ended[-1] == name
        assert place.files() == []


def test_a_stream_that_is_closed_removes_what_was_not_taken(place: Place) -> None:
    decorated = shared_arguments(options=options(place))

    @decorated
    def numbers() -> Iterator[Any]:
        yield b"one"
        yield b"two"

    @decorated
    async def later() -> AsyncIterator[Any]:
        yield b"one"
        yield b"two"

    chunks = numbers()
    next(chunks)
    assert held(place) == 1
    chunks.close()  # type: ignore[attr-defined]
    assert place.files() == []

    async def cancelled() -> None:
        chunks = later()
        await anext(chunks)
        assert held(place) == 1
        await chunks.aclose()  # type: ignore[attr-defined]

    asyncio.run(cancelled())
    assert place.files() == []


def test_an_error_in_a_stream_is_the_error(place: Place) -> None:
    @shared_arguments(options=options(place))
    def breaks() -> Iterator[Any]:
        yield b"one"
        raise RuntimeError("broken")

    chunks = breaks()
    next(chunks)
    with pytest.raises(RuntimeError, match="broken"):
        next(chunks)
    assert place.files() == []


def test_what_is_left_at_the_end_can_be_taken_for_so_long(place: Place) -> None:
    @shared_arguments(options=options(place, flow=Flow(timeout=0.5)))
    def numbers() -> Iterator[Any]:
        yield b"one"
        yield b"two"
        yield b"three"

    ended = time.monotonic()
    first, *_ = list(numbers())
    assert taken(place, first) == b"one"
    until(lambda: held(place) == 0, "removed after its time")
    assert time.monotonic() - ended >= 0.5
    until(lambda: _snakepit_flow._leftovers._thread is None, "the thread's end")
    assert not shm._share._shared


def test_what_is_left_goes_with_the_interpreter(place: Place) -> None:
    place.run(
        """
        from snakepit_shm.snakepit import shared_arguments

        @shared_arguments
        def numbers():
            yield b"one"

        list(numbers())
        """
    )
    assert place.files() == []


def test_a_forked_child_leaves_its_parents_chunks_alone(place: Place) -> None:
    out = place.run(
        """
        import os, warnings
        from snakepit_shm import _snakepit_flow as flow, list_segments
        from snakepit_shm.snakepit import Flow, Options, shared_arguments

        warnings.simplefilter("ignore", DeprecationWarning)

        @shared_arguments(options=Options(flow=Flow(timeout=60)))
        def numbers():
            yield b"one"

        list(numbers())
        if (pid := os.fork()) == 0:
            assert flow._leftovers._chunks == {} and flow._leftovers._thread is None
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        print(len(list_segments()))
        """
    )
    assert out == "1\n"
    assert place.files() == []
