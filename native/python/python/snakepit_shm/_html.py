"""What notebooks show. Names, dtypes and the like come from shared files: all of it is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from ._errors import EmptyError, ShmError
from ._native import Pin, Reader, Writer


def _size(nbytes: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"{nbytes / scale:.4g} {unit}"
    return f"{nbytes} bytes"


def table(title: str, name: str, rows: Iterable[tuple[str, Any]]) -> str:
    """A table of facts under a title. Everything is taken for text."""
    body = "".join(
        f"<tr><th style='text-align:left'>{escape(str(key))}</th>"
        f"<td style='text-align:left'>{escape(str(value))}</td></tr>"
        for key, value in rows
    )
    caption = f"{escape(title)} <code>{escape(name)}</code>"
    return (
        "<table class='snakepit-shm'>"
        f"<thead><tr><th colspan='2' style='text-align:left'>{caption}</th></tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _value(reader: Reader) -> list[tuple[str, Any]]:
    try:
        info = reader.info()
    except EmptyError:
        return [("value", "none yet")]
    except ShmError as error:
        return [("value", f"{error.code}: {error}")]
    rows: list[tuple[str, Any]] = [("value", _size(info.nbytes))]
    if info.format == "numpy":
        rows += [("dtype", info.dtype), ("shape", info.shape)]
    else:
        rows.append(("format", info.format))
    if info.timestamp_ns:
        rows.append(("age", f"{reader.age():.3g} s"))
    return rows


def reader(reader: Reader) -> str:
    """`Reader._repr_html_`."""
    rows: list[tuple[str, Any]] = [("capacity", _size(reader.capacity))]
    try:
        sealed = reader.is_sealed
        rows += [("state", "sealed" if sealed else "live"), ("version", reader.version)]
        rows += _value(reader)
    except ShmError as error:
        # Closed already, or in this moment by another thread.
        rows.append(("state", error.code))
    return table("snakepit_shm.Reader", reader.name, rows)


def writer(writer: Writer) -> str:
    """`Writer._repr_html_`."""
    rows: list[tuple[str, Any]] = [("capacity", _size(writer.capacity))]
    try:
        rows += [("version", writer.version), ("generation", writer.generation)]
    except ShmError as error:
        rows.append(("state", error.code))
    return table("snakepit_shm.Writer", writer.name, rows)


def pin(pin: Pin) -> str:
    """`Pin._repr_html_`."""
    rows: list[tuple[str, Any]] = [("version", pin.version), ("in place", pin.in_place)]
    try:
        rows.append(("value", _size(len(pin))))
    except ShmError:
        rows.append(("state", "released"))
    return table("snakepit_shm.Pin", pin.segment, rows)
