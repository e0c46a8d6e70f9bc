"""Arrow tables: written once into shared memory, read in place."""

from __future__ import annotations

import contextlib
import gc
import json
import sys
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

import snakepit_shm as shm
from conftest import Place


def table(rows: int = 1000) -> Any:
    return pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "name": pa.array([f"row {i}" if i % 7 else None for i in range(rows)]),
            "kind": pa.array([["a", "b"][i % 2] for i in range(rows)]).dictionary_encode(),
            "points": pa.array([[i, i + 1] for i in range(rows)]),
        }
    )


def test_tables_survive_and_lie_in_shared_memory(place: Place) -> None:
    original = table()
    handle = place.share(original)
    assert handle["format"] == "arrow_ipc"
    assert (handle["dtype"], handle["shape"]) == ("|u1", [handle["bytes"]])
    before = pa.total_allocated_bytes()
    got = place.resolve(json.dumps(handle))
    assert got.equals(original)
    column = got.column("id").chunk(0).buffers()[1]
    with place.attach(handle["name"]) as reader:
        inside = np.frombuffer(reader.memoryview(), np.uint8)
        assert inside.nbytes == handle["bytes"]
        assert pa.total_allocated_bytes() - before < original.nbytes // 2
        del inside
    with pytest.raises((ValueError, TypeError)):
        np.frombuffer(column, np.int64)[0] = 1
    place.release(handle)
    assert got.column("id").to_pylist() == list(range(1000))


def test_record_batches_and_chunked_tables(place: Place) -> None:
    batch = table(10).to_batches()[0]
    chunked = pa.concat_tables([table(10), table(20)])
    for obj in (batch, chunked):
        handle = place.share(obj)
        wanted = pa.Table.from_batches([obj]) if isinstance(obj, pa.RecordBatch) else obj
        assert place.resolve(handle).equals(wanted)
        place.release(handle)


def test_a_table_without_rows(place: Place) -> None:
    handle = place.share(table(0))
    got = place.resolve(handle)
    assert got.num_rows == 0
    assert got.schema == table(0).schema
    place.release(handle)


def test_arrow_of_a_live_segment(place: Place) -> None:
    first, second = table(5), table(9)
    with place.create(size=1 << 16) as writer, place.attach() as reader:
        for wanted in (first, second):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, wanted.schema) as stream:
                stream.write(wanted)
            writer.write(sink.getvalue())
            assert reader.arrow().equals(wanted)


def test_a_table_outlives_reader_and_name(place: Place) -> None:
    handle = place.share(table(100))
    got = place.resolve(handle)
    ids = got.column("id")
    place.release(handle)
    del got
    gc.collect()
    assert ids.to_pylist() == list(range(100))


def test_what_is_no_stream_is_refused(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        for value in (b"x", b"\0" * 64, b"\xff" * 4096, b"ARROW1\0\0" * 8):
            writer.write(value)
            with pytest.raises(shm.CorruptedError, match="no Arrow IPC stream"):
                reader.arrow()


def test_a_cut_stream_is_refused(place: Place) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table(50).schema) as stream:
        stream.write(table(50))
    whole = sink.getvalue().to_pybytes()
    with place.create(size=1 << 16) as writer, place.attach() as reader:
        for length in range(1, len(whole) - 8, 97):
            writer.write(whole[:length])
            try:
                got = reader.arrow()
            except shm.CorruptedError:
                continue
            assert got.num_rows == 0  # only the schema is in it


def stream_of(table: Any) -> bytearray:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write(table)
    return bytearray(sink.getvalue().to_pybytes())


def sealed(place: Place, value: bytes | bytearray) -> dict[str, Any]:
    """The handle of these bytes as an Arrow value, whose maker has gone."""
    with place.create("noise", max(4096, len(value) + 4096 & ~4095), slots=1) as writer:
        loan = writer.loan(len(value), format="arrow_ipc")
        with loan as slot:
            slot[:] = np.frombuffer(bytes(value), np.uint8)
        del slot, loan
        writer.seal()
        handle: dict[str, Any] = writer.handle()
        writer.give_away(60)
    return handle


@pytest.mark.parametrize(
    ("column", "good"),
    [
        (pa.array(["a", "bb", "ccc"]), np.array([0, 1, 3, 6], "<i4")),
        (pa.array([[7], [8, 9], [10, 11, 12]]), np.array([0, 1, 3, 6], "<i4")),
        (
            pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int32()), ["x", "y", "z"]),
            np.array([0, 1, 2], "<i4"),
        ),
    ],
    ids=["strings", "lists", "dictionary"],
)
@pytest.mark.parametrize("wild", [1 << 30, -5])
def test_columns_that_point_outside_of_themselves_are_refused(
    place: Place, column: Any, good: Any, wild: int
) -> None:
    value = stream_of(pa.table({"c": column}))
    at = value.index(good.tobytes()) + 4  # the second: the first and the last are right
    value[at : at + 4] = np.array(wild, "<i4").tobytes()
    handle = sealed(place, value)
    for form in (None, "arrow", "pandas", "polars"):
        with pytest.raises(shm.CorruptedError, match="no Arrow IPC stream"):
            place.resolve(handle, as_=form)
    with place.attach("noise") as reader, pytest.raises(shm.CorruptedError):
        reader.arrow()
    place.release(handle)


@given(noise=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_noise_in_a_table_harms_the_interpreter(
    place: Place, noise: list[tuple[int, int]]
) -> None:
    value = stream_of(table(5))
    for at, byte in noise:
        value[at % len(value)] = byte
    handle = sealed(place, value)
    for form in ("arrow", "pandas", "polars", "numpy"):
        with contextlib.suppress(shm.CorruptedError, shm.UnsupportedError):
            place.resolve(handle, as_=form)
    place.release(handle)


def test_without_pyarrow_the_error_says_what_to_install(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = place.share(table(3))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(shm.UnsupportedError, match="pip install"):
        place.resolve(handle)
    monkeypatch.undo()
    place.release(handle)


def test_pyarrow_is_only_imported_for_tables(place: Place) -> None:
    out = place.run(
        """
        import sys, snakepit_shm
        handle = snakepit_shm.share(b"x")
        snakepit_shm.resolve(handle)
        snakepit_shm.release(handle)
        print("pyarrow" in sys.modules)
        """
    )
    assert out == "False\n"
