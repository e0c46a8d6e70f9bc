"""Arrow tables in shared memory, as IPC streams. pyarrow is imported on first use."""

from __future__ import annotations

import sys
from typing import Any

from ._errors import CorruptedError, UnsupportedError
from ._native import Writer

KIND = b"snakepit_shm"
"""Metadata of a schema that says what the only column of a table was before it was shared."""

_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What pyarrow answers to bytes that are no table, beside its own exceptions: some types of a
schema are made by Python code."""


def is_table(obj: object) -> bool:
    """Whether `obj` is a pyarrow Table or RecordBatch. Imports nothing: who has one has pyarrow."""
    pa: Any = sys.modules.get("pyarrow")
    return pa is not None and isinstance(obj, (pa.Table, pa.RecordBatch))


def is_arrow(obj: object) -> bool:
    """Whether `obj` goes by Arrow: of pyarrow, pandas or polars, or what offers an Arrow stream.

    Imports nothing: who has one of those has its library.
    """
    pa: Any = sys.modules.get("pyarrow")
    if is_table(obj) or (pa is not None and isinstance(obj, (pa.Array, pa.ChunkedArray))):
        return True
    library = type(obj).__module__.partition(".")[0]
    if library in {"pandas", "polars"}:
        return type(obj).__name__ in {"DataFrame", "Series"}
    return hasattr(obj, "__arrow_c_stream__")


def as_table(obj: Any) -> Any:
    """`obj` as a pyarrow Table; without a copy where the library can do that."""
    kind = type(obj).__qualname__
    pa = _pyarrow(f"an object of type {kind!r} is shared as an Arrow table, which")
    refused = (pa.ArrowException, TypeError, ValueError, NotImplementedError)
    library = type(obj).__module__.partition(".")[0]
    make = {"pandas": _of_pandas, "polars": _of_polars}.get(library, _of_arrow)
    try:
        return make(pa, obj)
    except refused as error:
        raise UnsupportedError(
            f"an object of type {kind!r} is no Arrow table: {error}",
            remedy="convert the columns that hold Python objects, or leave them out",
        ) from error


def _of_arrow(pa: Any, obj: Any) -> Any:
    if isinstance(obj, pa.Table):
        return obj
    if isinstance(obj, pa.RecordBatch):
        return pa.Table.from_batches([obj])
    if isinstance(obj, (pa.Array, pa.ChunkedArray)):
        return _marked(pa.table({"": obj}), "array")
    return pa.RecordBatchReader.from_stream(obj).read_all()


def _of_pandas(pa: Any, obj: Any) -> Any:
    if type(obj).__name__ == "DataFrame":
        return pa.Table.from_pandas(obj)
    unnamed = obj.name is None
    frame = obj.to_frame(name="" if unnamed else obj.name)
    return _marked(pa.Table.from_pandas(frame), "unnamed series" if unnamed else "series")


def _of_polars(_pa: Any, obj: Any) -> Any:
    _check_polars(obj)
    if type(obj).__name__ == "DataFrame":
        return obj.to_arrow()
    # By way of a table, whose fields say more than a column does (which categories an Enum has).
    return _marked(obj.to_frame().to_arrow(), "series")


def _check_polars(obj: Any) -> None:
    """Refuse Python objects, of which polars would give away the addresses."""
    for series in obj.get_columns() if type(obj).__name__ == "DataFrame" else (obj,):
        if str(series.dtype) == "Object":
            raise TypeError(f"column {series.name!r} holds Python objects")


def _marked(table: Any, kind: str) -> Any:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), KIND: kind.encode()})


def unmarked(table: Any) -> tuple[Any, str]:
    """The table as it was, and what its only column was; ``"table"`` when it was a table."""
    metadata = dict(table.schema.metadata or {})
    kind = metadata.pop(KIND, b"table").decode("ascii", "replace")
    if kind == "table" or table.num_columns == 0:
        return table, "table"
    return table.replace_schema_metadata(metadata or None), kind


def table_nbytes(table: Any) -> int:
    """Length of the table's IPC stream in bytes, found without making one."""
    import pyarrow as pa  # type: ignore[import-untyped]

    sink = pa.MockOutputStream()
    _write_stream(table, sink)
    return int(sink.size())


def write_table(writer: Writer, table: Any, nbytes: int) -> int:
    """Publish the table, written once, straight into the slot; returns its version."""
    import pyarrow as pa

    loan = writer.loan(nbytes, format="arrow_ipc")
    with loan as slot, pa.FixedSizeBufferWriter(pa.py_buffer(slot)) as sink:
        _write_stream(table, sink)
    return loan.version


def read_table(value: memoryview, segment: str) -> Any:
    """The table in `value`; its columns lie in that memory, without a copy.

    Raises:
        CorruptedError: The bytes are no table, or one whose columns point outside of themselves.
    """
    pa = _pyarrow(f"reading an Arrow table from segment {segment}", segment)
    try:
        with pa.ipc.open_stream(pa.py_buffer(value)) as stream:
            table = stream.read_all()
        # Libraries follow offsets and indices without a look, and a wild one ends the process. What
        # has none (numbers) costs nothing here.
        table.validate(full=True)
        _ = table.column_names  # which validate() takes for UTF-8
    except (*_UNREADABLE, pa.ArrowException) as error:
        raise CorruptedError(
            f"the value of segment {segment} is no Arrow IPC stream: {error}",
            remedy="check the writer, or read the bytes with read()",
            segment=segment,
        ) from error
    return table


def read_value(value: memoryview, segment: str) -> Any:
    """`read_table`, or the column that it was made of."""
    table, kind = unmarked(read_table(value, segment))
    return table if kind == "table" else only_column(table)


def only_column(table: Any) -> Any:
    """The column of a table that was one: in one piece, if it was."""
    column = table.column(0)
    # A stream has no batch of what is empty.
    return column if column.num_chunks > 1 else column.combine_chunks()


def stream_bytes(table: Any) -> bytes:
    """The table's IPC stream."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    _write_stream(table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _pyarrow(what: str, segment: str | None = None) -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise UnsupportedError(
            f"{what} needs pyarrow",
            remedy="pip install 'snakepit-shm[arrow]'",
            segment=segment,
        ) from error
    return pa


def _write_stream(table: Any, sink: Any) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write(table)
