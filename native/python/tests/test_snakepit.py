"""Kinds of tools, and adapters, against a stand-in for Snakepit's server (snakepit_stand_in.py)."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import PATIENCE, Place, until
from snakepit_shm import _snakepit_member
from snakepit_shm.snakepit import (
    ArgumentsNotResolvedError,
    Flow,
    Options,
    SharedMemoryAdapter,
    shared_arguments,
)
from snakepit_stand_in import BaseAdapter, request, tool
from tool_values import options, released, taken

pytestmark = pytest.mark.usefixtures("leave")


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


def test_methods_of_every_kind_in_either_order(place: Place) -> None:
    here = options(place)

    class Tools:
        @shared_arguments(options=here)
        @classmethod
        def above(cls, value: Any) -> Any:
            return {"of": cls.__name__, "value": value + 1}

        @classmethod
        @shared_arguments(options=here)
        def below(cls, value: Any) -> Any:
            return {"of": cls.__name__, "value": value + 1}

        @shared_arguments(options=here)
        @staticmethod
        def alone(value: Any) -> Any:
            return {"of": "Tools", "value": value + 1}

    class Bridge(SharedMemoryAdapter):
        shared_memory = here

        @classmethod
        def call_tool(cls, name: str, **arguments: Any) -> Any:
            return {"of": "Tools", "value": getattr(Tools(), name)(**arguments)["value"]}

    class Alone(SharedMemoryAdapter):
        shared_memory = here

        @staticmethod
        def call_tool(name: str, **arguments: Any) -> Any:
            return getattr(Tools, name)(**arguments)

    handle = place.share(np.arange(3))
    for name in ("above", "below", "alone"):
        for call in (
            getattr(Tools(), name),
            getattr(Tools, name),
            lambda value, name=name: Bridge().call_tool(name, value=value),
            lambda value, name=name: Bridge().execute_tool(name, {"value": value}, None),
            lambda value, name=name: Alone().call_tool(name, value=value),
        ):
            answer = call(handle)
            assert answer["of"] == "Tools"
            assert taken(place, answer["value"]).tolist() == [1, 2, 3]
    released(place, handle)


@pytest.mark.parametrize(
    "wrong", [5, property(lambda _: 5), "tool"], ids=["int", "property", "str"]
)
def test_what_is_no_tool_is_refused_where_it_is_decorated(wrong: Any) -> None:
    with pytest.raises(TypeError, match=type(wrong).__name__):
        shared_arguments(wrong)


def test_whatever_can_be_awaited_is_awaited(place: Place) -> None:
    class Later:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return np.arange(3)

    async def now() -> Any:
        return np.arange(3)

    async def main() -> None:
        for begin in (Later, now, lambda: asyncio.ensure_future(now())):
            answer = await shared_arguments(options=options(place))(begin)()
            assert taken(place, answer).tolist() == [0, 1, 2]

    asyncio.run(main())
    assert place.files() == []


def test_a_coroutine_that_is_thrown_away_ends_quietly(place: Place) -> None:
    """Its loop has been closed: it ends in another context than the one that it began in."""
    ended = []

    @shared_arguments(options=options(place))
    async def tool() -> None:
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            ended.append(1)

    async def begin() -> Any:
        coroutine = tool()
        coroutine.send(None)
        return coroutine

    coroutine = asyncio.run(begin())
    coroutine.close()
    assert ended == [1]


def test_options_out_of_range_are_refused() -> None:
    for wrong in ({"threshold": 0}, {"raw": "str"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Options(**wrong)  # type: ignore[arg-type]
    for wrong_flow in ({"max_chunks": 0}, {"max_bytes": 0}, {"timeout": 0.0}):
        with pytest.raises(ValueError, match="positive"):
            Flow(**wrong_flow)  # type: ignore[arg-type]


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
