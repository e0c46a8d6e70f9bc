"""The live segment's writer: a value every millisecond, each with the moment it was written."""

import struct
import time
from typing import Any

import snakepit_shm

# A running number, and CLOCK_MONOTONIC in nanoseconds.
VALUE = struct.Struct("<QQ")

_writers: dict[str, snakepit_shm.Writer] = {}


def open_segment(request: dict[str, Any]) -> dict[str, Any]:
    """Creates the segment `name`, with a first value, number 0."""
    writer = snakepit_shm.create(request["name"], 4096)
    _write(writer, 0)
    _writers[request["name"]] = writer
    return {}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Writes values 1, 2, ... at `rate` a second for `seconds`; answers how many, how long."""
    writer = _writers[request["name"]]
    count = round(request["rate"] * request["seconds"])
    period = 1 / request["rate"]
    started = time.monotonic()
    for number in range(1, count + 1):
        # Against the schedule, not against the last write: lateness does not add up.
        pause = started + number * period - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        _write(writer, number)
    return {"written": count, "seconds": time.monotonic() - started}


def close_segment(request: dict[str, Any]) -> dict[str, Any]:
    """Gives the segment back."""
    _writers.pop(request["name"]).close()
    return {}


def close_all() -> None:
    """Gives back what is still open."""
    for name in list(_writers):
        close_segment({"name": name})


def _write(writer: snakepit_shm.Writer, number: int) -> None:
    writer.write(VALUE.pack(number, time.clock_gettime_ns(time.CLOCK_MONOTONIC)))
