"""Values in place of which a handle travels through Snakepit's JSON, both ways.

The forms are those of `Snakepit.SharedMemory.Bridge` (Elixir, `bridge/wire.ex`):

- a handle: bytes, an array or a table,
- ``{"__snakepit_shm_text__": handle}``: text if it is UTF-8, else bytes,
- ``{"__snakepit_shm_chunk__": handle}``: a value that whoever takes it removes,
- ``{"__snakepit_shm_inline__": 1, ...}``: the bytes themselves, in base64.
"""

from __future__ import annotations

import base64
import contextlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from . import _arrow
from ._api import StrPath
from ._errors import (
    InvalidHandleError,
    InvalidOptionError,
    InvalidSizeError,
    ShmError,
    UnsupportedError,
)
from ._share import Handle, release, resolve, share
from ._snakepit_member import stay

HANDLE = "__snakepit_shm__"
TEXT = "__snakepit_shm_text__"
CHUNK = "__snakepit_shm_chunk__"
INLINE = "__snakepit_shm_inline__"
ZERO_COPY = "__snakepit_zero_copy__"
METADATA = "snakepit_shm"
"""The key under which a `ZeroCopyRef` of Snakepit's carries a handle of ours."""

INLINE_MOST = 64 << 20
"""Bytes of one value that base64 still brings through a message of 100 MiB."""

Sharer = Callable[[Any], Handle]


def decode(
    value: Any, *, raw: Literal["memoryview", "bytes"] = "memoryview", dir: StrPath | None = None
) -> Any:
    """A value of JSON with everything in it resolved; what has nothing in it is itself.

    Raises:
        ShmError: Something in it cannot be resolved.
    """
    if isinstance(value, Mapping):
        found = special(value)
        if found is not None:
            return _take(*found, raw=raw, dir=dir)
        if type(value) is dict:
            return _same({k: decode(v, raw=raw, dir=dir) for k, v in value.items()}, value)
        return value
    if type(value) is list:
        return _same([decode(item, raw=raw, dir=dir) for item in value], value)
    carried = _carried(value)
    return value if carried is None else _take("handle", carried, raw=raw, dir=dir)


def _same(new: Any, old: Any) -> Any:
    """The old one when nothing in it has changed: a tool may rely on which object it gets."""
    pairs = (
        zip(new.values(), old.values(), strict=True)
        if isinstance(new, dict)
        else zip(new, old, strict=True)
    )
    return old if all(a is b for a, b in pairs) else new


def special(value: Mapping[str, Any]) -> tuple[str, Any] | None:
    """What an object stands for, if it is one of the forms: which, and what is in it."""
    if HANDLE in value:
        return "handle", value
    if INLINE in value:
        return "inline", value
    if len(value) == 1:
        for key, kind in ((TEXT, "text"), (CHUNK, "handle")):
            inner = value.get(key)
            if isinstance(inner, Mapping) and HANDLE in inner:
                return kind, inner
    if value.get(ZERO_COPY) is True:
        metadata = value.get("metadata")
        if isinstance(metadata, Mapping) and isinstance(metadata.get(METADATA), Mapping):
            return "handle", metadata[METADATA]
    return None


def _carried(value: Any) -> Any:
    """The handle that Snakepit's own `ZeroCopyRef` object carries; nothing of it is imported."""
    zero_copy: Any = sys.modules.get("snakepit_bridge.zero_copy")
    if zero_copy is None or not isinstance(value, zero_copy.ZeroCopyRef):
        return None
    metadata = value.metadata
    return metadata.get(METADATA) if isinstance(metadata, Mapping) else None


def _take(
    kind: str, found: Any, *, raw: Literal["memoryview", "bytes"], dir: StrPath | None
) -> Any:
    value = _from_inline(found) if kind == "inline" else _resolved(found, dir)
    if not isinstance(value, memoryview):
        return value
    if kind == "text":
        with contextlib.suppress(UnicodeDecodeError):
            return str(value, "utf-8")
    return bytes(value) if raw == "bytes" else value


def _resolved(handle: Mapping[str, Any], dir: StrPath | None) -> Any:
    value = resolve(handle, dir=dir)
    # Now it is known to be one: a namespace is not joined because somebody names it.
    stay(handle["namespace"], dir)
    return value


def _from_inline(found: Mapping[str, Any]) -> Any:
    try:
        data = base64.b64decode(found["base64"], validate=True)
        if found["format"] == "arrow_ipc":
            return _arrow.read_table(memoryview(data), "(inline)")
        if found["dtype"] is None:
            return memoryview(data)
        array: np.ndarray[Any, Any] = np.frombuffer(data, np.dtype(found["dtype"]))
        if array.dtype.hasobject:
            raise ValueError("a dtype of objects")
        return array if found["shape"] is None else array.reshape(found["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidHandleError(
            f"invalid inline value: {error}",
            remedy="use the same version of the library on both sides",
        ) from error


class Encoder:
    """Puts what is large, or what JSON cannot carry, of one result into shared memory.

    Args:
        sharer: How a value is shared.
        threshold: Bytes from which text is shared.
        dir: Where the regions are.
        wrap: The key of the form in which a handle goes; none for the handle itself.
    """

    def __init__(
        self, sharer: Sharer, threshold: int, dir: StrPath | None, wrap: str | None = None
    ) -> None:
        self._sharer = sharer
        self._threshold = threshold
        self._dir = dir
        self._wrap = wrap
        self.shared: list[Handle] = []

    def encode(self, value: Any) -> Any:
        """The value as JSON can carry it. On an exception nothing of it stays shared."""
        try:
            return self._walk(value)
        except BaseException:
            for handle in self.shared:
                with contextlib.suppress(ShmError):
                    release(handle, dir=self._dir)
            self.shared.clear()
            raise

    def _walk(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value) if len(value) * 4 >= self._threshold else value
        if type(value) is dict:
            if special(value) is not None:
                return value  # the tool's own handle
            return _same({key: self._walk(item) for key, item in value.items()}, value)
        if type(value) is list:
            return _same([self._walk(item) for item in value], value)
        if type(value) is tuple:
            return _same([self._walk(item) for item in value], value)
        return self._share(value) if is_shareable(value) else value

    def _text(self, text: str) -> Any:
        try:
            data = text.encode()
        except UnicodeEncodeError:
            return text  # a lone surrogate: JSON has a way to write it
        return self._share(data) if len(data) >= self._threshold else text

    def _share(self, value: Any) -> Any:
        if _is_empty(value):
            return inline(value, None)  # a region for nothing costs more than it
        try:
            handle = self._sharer(value)
        except (UnsupportedError, InvalidOptionError):
            return value  # an array of objects, say: whoever writes the JSON decides, as without us
        except InvalidSizeError:
            raise  # more than a region holds is more than a message holds
        except ShmError as error:
            return inline(value, error)
        self.shared.append(handle)
        return handle if self._wrap is None else {self._wrap: handle}


def is_shareable(value: Any) -> bool:
    """Whether JSON cannot carry it and shared memory can, as far as that is seen from outside."""
    if isinstance(value, bytes | bytearray | memoryview | np.ndarray):
        return True
    if isinstance(value, np.generic):
        return False  # a number
    return _arrow.is_table(value) or any(
        hasattr(type(value), name) for name in ("__dlpack__", "__arrow_c_stream__")
    )


def _is_empty(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        # What is made of objects cannot be shared, empty or not.
        return value.nbytes == 0 and not value.dtype.hasobject
    if isinstance(value, memoryview):
        return value.nbytes == 0
    return isinstance(value, bytes | bytearray) and not value


def inline(value: Any, error: ShmError | None) -> dict[str, Any]:
    """The value in base64, with the reason why it is not shared, or none where that is no loss.

    Raises:
        ShmError: ``error``: it is too large for that.
    """
    plain = _plain(value)
    if error is not None and (plain is None or len(plain[0]) > INLINE_MOST):
        raise error
    if plain is None:
        raise UnsupportedError(f"an object of type {type(value).__qualname__!r} has no plain form")
    data, dtype, shape, format = plain
    return {
        INLINE: 1,
        "base64": base64.b64encode(data).decode("ascii"),
        "dtype": dtype,
        "shape": shape,
        "format": format,
        "reason": None if error is None else error.code,
    }


def _plain(value: Any) -> tuple[bytes, str | None, list[int] | None, str] | None:
    """Bytes, dtype, shape and format; none of what only `share` knows how to take."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), None, None, "raw"
    if _arrow.is_table(value):
        import pyarrow as pa  # type: ignore[import-untyped]

        sink = pa.BufferOutputStream()
        _arrow._write_stream(value, sink)
        return sink.getvalue().to_pybytes(), None, None, "arrow_ipc"
    if not isinstance(value, np.ndarray) and not hasattr(type(value), "__dlpack__"):
        return None
    array = np.asarray(value) if isinstance(value, np.ndarray) else np.from_dlpack(value)
    return array.tobytes(), array.dtype.str, list(array.shape), "numpy"


def share_for_good(namespace: str | None, dir: StrPath | None) -> Sharer:
    """A way to share that gives each value away to whoever has its handle."""

    def give(value: Any) -> Handle:
        stay(namespace, dir)
        return share(value, namespace=namespace, dir=dir, transfer=True)

    return give
