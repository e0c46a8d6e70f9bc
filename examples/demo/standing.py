"""Two regions that stay: a value comes in by the one, its answer goes out by the other."""

from typing import Any

import numpy as np
import snakepit_shm

_open: dict[str, tuple[snakepit_shm.Reader, snakepit_shm.Writer]] = {}


def open_pair(request: dict[str, Any]) -> dict[str, Any]:
    """Attaches to the region `input` and creates `output`, for values of up to `size` bytes."""
    reader = snakepit_shm.attach(request["input"])
    capacity = snakepit_shm.round_up_capacity(request["size"])
    _open[request["output"]] = (reader, snakepit_shm.create(request["output"], capacity, slots=2))
    return {}


def go(request: dict[str, Any]) -> dict[str, Any]:
    """Copies the value from the one into the other, and there adds one to each byte."""
    reader, writer = _open[request["output"]]
    with writer.loan(len(reader)) as room:
        reader.read_into(room)
        np.add(room, 1, out=room)
    return {"version": writer.version}


def close_pair(request: dict[str, Any]) -> dict[str, Any]:
    """Gives both back; `output` is removed."""
    reader, writer = _open.pop(request["output"])
    reader.close()
    writer.close()
    return {}


def close_all() -> None:
    """Gives back what is still open."""
    for output in list(_open):
        close_pair({"output": output})
