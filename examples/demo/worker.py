"""The demo's worker: gets handles in JSON, one line a request, and answers with handles.

What it computes it computes on the shared bytes themselves: `resolve` gives a numpy view of them,
and results that are large are filled in place in shared memory. The app says by
$SNAKEPIT_SHM_NAMESPACE where names are looked up.
"""

import itertools
import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import live
import numpy as np
import snakepit_shm
import standing

Answer = dict[str, Any]
Request = dict[str, Any]

_numbers = itertools.count(1)


def edges(request: Request) -> Answer:
    """The edges of a picture of bytes, `[height, width]` or with channels, as `edges.ex` has it."""
    picture = snakepit_shm.resolve(request["handle"])
    if picture.ndim == 3:
        red, green, blue = (picture[..., i].astype(np.uint16) for i in range(3))
        picture = (77 * red + 150 * green + 29 * blue) >> 8
    g = picture.astype(np.int16)
    found = np.zeros(g.shape, np.uint8)
    if min(g.shape) >= 3:
        left = g[:-2, :-2] + 2 * g[1:-1, :-2] + g[2:, :-2]
        right = g[:-2, 2:] + 2 * g[1:-1, 2:] + g[2:, 2:]
        above = g[:-2, :-2] + 2 * g[:-2, 1:-1] + g[:-2, 2:]
        below = g[2:, :-2] + 2 * g[2:, 1:-1] + g[2:, 2:]
        found[1:-1, 1:-1] = np.minimum(255, np.abs(right - left) + np.abs(below - above))
    return {"handle": snakepit_shm.share(found, transfer=True)}


def histogram(request: Request) -> Answer:
    """Counts of 256 equal steps from the least to the greatest value, as `histogram.ex` has it."""
    x = snakepit_shm.resolve(request["handle"]).reshape(-1).astype(np.float64)
    x = x[np.isfinite(x)]
    low, high = (x.min(), x.max()) if x.size else (0.0, 0.0)
    span = high / 2 - low / 2
    scale = 0.0 if span < 1.0e-300 else 256 / span
    bins = np.minimum(255, ((x / 2 - low / 2) * scale).astype(np.int64))
    counts = np.bincount(bins, minlength=256).astype("<i8")
    return {"handle": snakepit_shm.share(counts, transfer=True)}


def add_one(request: Request) -> Answer:
    """One added to each byte, straight from the shared input into a segment for the answer."""
    values = snakepit_shm.resolve(request["handle"])
    capacity = snakepit_shm.round_up_capacity(values.nbytes)
    writer = snakepit_shm.create(f"answer-{next(_numbers)}", capacity, slots=1, notify=False)
    with writer.loan(values.shape, values.dtype) as room:
        np.add(values, 1, out=room)
    del room  # the loan is over
    writer.seal()
    handle = writer.handle()
    # Given away: the app removes it when it has read it.
    writer.release()
    return {"handle": handle}


def clock(_request: Request) -> Answer:
    """This process's CLOCK_MONOTONIC, for the app to see whether both read the same one."""
    return {"monotonic_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC)}


OPERATIONS: dict[str, Callable[[Request], Answer]] = {
    "edges": edges,
    "histogram": histogram,
    "add_one": add_one,
    "standing_open": standing.open_pair,
    "standing_go": standing.go,
    "standing_close": standing.close_pair,
    "clock": clock,
    "live_open": live.open_segment,
    "live_run": live.run,
    "live_close": live.close_segment,
}


def main() -> None:
    try:
        serve()
    finally:
        # Also when the app ended in the middle: what this process made goes with it.
        live.close_all()
        standing.close_all()


def serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "stop":
            return
        try:
            answer = {"ok": True, **OPERATIONS[request["op"]](request)}
        except Exception as error:
            traceback.print_exc()
            answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
