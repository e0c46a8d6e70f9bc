"""The tools: real work on arrays and tables, wherever their bytes lie."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from snakepit_shm.snakepit import SharedMemoryAdapter

Array = np.ndarray[Any, Any]


class Refused(ValueError):
    """The request makes no sense; whoever sent it is told."""


class Adapter:
    """What of Snakepit's `BaseAdapter` is used here."""

    def call_tool(self, tool_name: str, **arguments: Any) -> Any:
        tool = getattr(self, tool_name, None)
        if tool_name.startswith("_") or not callable(tool):
            raise Refused(f"no tool called {tool_name!r}")
        return tool(**arguments)


def blurred(pictures: Array) -> Array:
    """Each pixel the mean of the nine around it, for pictures [n, height, width, 3] of bytes."""
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge").astype(np.uint16)
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return ((rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) // 9).astype(np.uint8)


def spectrum_of(signals: Array) -> Array:
    """Magnitudes of the frequencies of each of the signals [channels, samples]."""
    return np.abs(np.fft.rfft(signals, axis=-1)).astype(np.float32)


def aggregated(sales: pa.Table) -> pa.Table:
    """Sales, revenue and highest price of each shop, by name."""
    prices = [("price", "count"), ("price", "sum"), ("price", "max")]
    # Threads would add up in an order of the moment, and come to other last digits each time.
    found = sales.group_by("shop", use_threads=False).aggregate(prices)
    shops = found["shop"].cast(pa.string())
    return found.set_column(found.column_names.index("shop"), "shop", shops).sort_by("shop")


class Tools(SharedMemoryAdapter, Adapter):
    """Every tool takes and returns plain numpy and Arrow values."""

    # -- data, made on the spot --------------------------------------------------------------------

    def make_pictures(self, count: int, height: int, width: int, seed: int) -> Array:
        """Discs of random colours and places, with noise."""
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width]
        pictures = rng.integers(0, 32, (count, height, width, 3), dtype=np.uint8)
        for picture in pictures:
            for _ in range(4):
                cy, cx, r = rng.integers((height, width, max(2, height // 3)))
                inside = (y - cy) ** 2 + (x - cx) ** 2 < r * r
                picture[inside] = (
                    picture[inside] // 2 + rng.integers(0, 200, 3, dtype=np.uint8) // 2
                )
        return pictures

    def make_sales(self, rows: int, seed: int) -> pa.Table:
        """Sales of fifty shops."""
        rng = np.random.default_rng(seed)
        shops = np.array([f"shop {n:02}" for n in range(50)])
        return pa.table(
            {
                "shop": pa.array(shops[rng.integers(0, 50, rows)]).dictionary_encode(),
                "price": np.round(rng.gamma(3.0, 7.0, rows), 2),
                "quantity": rng.integers(1, 9, rows, dtype=np.int32),
            }
        )

    def make_signals(self, channels: int, samples: int, seed: int) -> Array:
        """In channel k a tone of k + 1 periods, and noise."""
        rng = np.random.default_rng(seed)
        t = np.arange(samples) / samples
        tones = [np.sin(2 * np.pi * (k + 1) * t) for k in range(channels)]
        return (np.stack(tones) + rng.normal(0, 0.1, (channels, samples))).astype(np.float32)

    # -- work --------------------------------------------------------------------------------------

    def blur(self, pictures: Array) -> Array:
        return blurred(pictures)

    def blur_each(self, pictures: Array) -> Iterator[Any]:
        """As a stream: one picture a chunk."""
        for number in range(len(pictures)):
            yield {"number": number, "picture": blurred(pictures[number : number + 1])}

    def spectrum(self, signals: Array) -> Array:
        return spectrum_of(signals)

    def aggregate(self, sales: pa.Table) -> pa.Table:
        return aggregated(sales)

    def rows(self, table: pa.Table) -> list[dict[str, Any]]:
        """A small table as JSON carries it."""
        return table.to_pylist()

    def negative(self, values: Array) -> Array:
        """Little work on many bytes: what remains of a call is the way there and back."""
        return np.bitwise_not(values)

    def echo(self, value: Any) -> Any:
        """Bytes as bytes, and all else as it came."""
        return bytes(value) if isinstance(value, memoryview) else value

    def zeros(self, bytes: int) -> Array:
        return np.zeros(bytes, np.uint8)

    def length(self, value: Any) -> int:
        return len(value)

    # -- mishaps -----------------------------------------------------------------------------------

    def die(self, values: Array, marker: str) -> Any:
        """Killed in the middle, with the argument mapped; the second time it is done."""
        if os.path.exists(marker):
            return {"sum": int(values.sum())}
        with open(marker, "x"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    def hang(self, values: Array) -> None:
        del values
        time.sleep(3600)

    def fail(self, values: Array) -> None:
        raise Refused(f"{values.nbytes} bytes of nothing useful")


RAW: dict[str, Callable[[memoryview], Any]] = {}
"""The same work for bytes as they come through a pipe, whose form both sides know."""


def raw(name: str) -> Callable[[Any], Any]:
    def note(function: Any) -> Any:
        RAW[name] = function
        return function

    return note


@raw("negative")
def _(message: memoryview) -> Any:
    return np.bitwise_not(np.frombuffer(message, np.uint8))


@raw("blur")
def _(message: memoryview) -> Any:
    shape = np.frombuffer(message[:16], ">u4")
    return blurred(np.frombuffer(message[16:], np.uint8).reshape(shape))


@raw("spectrum")
def _(message: memoryview) -> Any:
    shape = np.frombuffer(message[:8], ">u4")
    return spectrum_of(np.frombuffer(message[8:], np.float32).reshape(shape))


@raw("aggregate")
def _(message: memoryview) -> Any:
    with pa.ipc.open_stream(pa.py_buffer(message)) as stream:
        found = aggregated(stream.read_all())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, found.schema) as writer:
        writer.write(found)
    return sink.getvalue()
