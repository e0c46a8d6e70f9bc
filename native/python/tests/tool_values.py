"""What the tests of Snakepit's tools have in common."""

from __future__ import annotations

import gc
import json
from typing import Any

import snakepit_shm as shm
from conftest import Place
from snakepit_shm.snakepit import Options


def options(place: Place, **more: Any) -> Options:
    return Options(namespace=place.namespace, dir=place.dir, **more)


def taken(place: Place, value: Any) -> Any:
    """As the caller does: what a handle names, which is then removed."""
    value = value.get("data", value)
    if "__snakepit_shm_chunk__" in value:
        value = value["__snakepit_shm_chunk__"]
    resolved = place.resolve(value)
    if isinstance(resolved, memoryview):
        resolved = bytes(resolved)
    shm._native.remove_handle(json.dumps(value), place.dir)
    return resolved


def text(place: Place, data: bytes) -> dict[str, Any]:
    return {"__snakepit_shm_text__": place.share(data)}


def released(place: Place, *handles: Any) -> None:
    gc.collect()
    for handle in handles:
        place.release(handle)
