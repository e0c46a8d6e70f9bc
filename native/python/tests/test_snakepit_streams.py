"""Streaming tools of Snakepit: chunks as handles, with flow control."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import Place, until
from snakepit_shm import _snakepit_flow
from snakepit_shm.snakepit import (
    Flow,
    SharedMemoryAdapter,
    StreamStalledError,
    shared_arguments,
)
from snakepit_stand_in import BaseAdapter, StreamChunk, stream, tool
from tool_values import options, released, taken

pytestmark = pytest.mark.usefixtures("leave")


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


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_stream_whose_own_end_fails_leaves_nothing(place: Place, asynchronous: bool) -> None:
    @shared_arguments(options=options(place))
    def generator() -> Iterator[Any]:
        try:
            yield np.arange(3)
        finally:
            raise KeyError("in the end")

    @shared_arguments(options=options(place))
    async def async_generator() -> AsyncIterator[Any]:
        try:
            yield np.arange(3)
        finally:
            raise KeyError("in the end")

    async def main() -> None:
        stream: Any = async_generator()
        await anext(stream)
        await stream.aclose()

    def run() -> None:
        stream: Any = generator()
        next(stream)
        stream.close()

    with pytest.raises(KeyError, match="in the end"):
        asyncio.run(main()) if asynchronous else run()
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
