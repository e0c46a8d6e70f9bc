"""Arrow tables in shared memory, as IPC streams. pyarrow is imported on first use."""

from __future__ import annotations

import sys
from typing import Any

from ._errors import CorruptedError, UnsupportedError
from ._native import Writer


def is_table(obj: object) -> bool:
    """Whether `obj` is a pyarrow Table or RecordBatch. Imports nothing: who has one has pyarrow."""
    pa: Any = sys.modules.get("pyarrow")
    return pa is not None and isinstance(obj, (pa.Table, pa.RecordBatch))


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
    """The table in `value`; its columns lie in that memory, without a copy."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise UnsupportedError(
            f"reading an Arrow table from segment {segment} needs pyarrow",
            remedy="pip install 'snakepit-shm[arrow]'",
            segment=segment,
        ) from error
    try:
        with pa.ipc.open_stream(pa.py_buffer(value)) as stream:
            return stream.read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptedError(
            f"the value of segment {segment} is no Arrow IPC stream: {error}",
            remedy="check the writer, or read the bytes with read()",
            segment=segment,
        ) from error


def _write_stream(table: Any, sink: Any) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write(table)
