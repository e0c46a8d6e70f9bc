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
from ._elements import restore, storage_of, stored_dtype
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

    def place(item: Any) -> Any:
        if isinstance(item, Mapping):
            found = special(item)
            if found is not None:
                return _take(*found, raw=raw, dir=dir)
            return _INSIDE if type(item) is dict else item
        if type(item) is list:
            return _INSIDE
        carried = _carried(item)
        return item if carried is None else _take("handle", carried, raw=raw, dir=dir)

    return _rebuilt(value, place)


_INSIDE: Any = object()
"""Instead of a value: it has others in it, which are looked at."""


class _Frame:
    """An object or a list that is being looked through."""

    def __init__(self, old: Any) -> None:
        self.old = old
        self.left = iter(old.values() if isinstance(old, dict) else old)
        self.new: list[Any] = []

    def made(self) -> Any:
        """The old one when nothing in it has changed: a tool may rely on which object it gets."""
        old = self.old.values() if isinstance(self.old, dict) else self.old
        if all(a is b for a, b in zip(self.new, old, strict=True)):
            return self.old
        return (
            dict(zip(self.old, self.new, strict=True)) if isinstance(self.old, dict) else self.new
        )


def _rebuilt(root: Any, place: Callable[[Any], Any]) -> Any:
    """A value in which ``place(x)`` has the place of everything, in objects and lists too.

    Not by recursion: what JSON can carry is deeper than that goes.

    Raises:
        ValueError: It has itself in it, which no JSON has.
    """
    frames = [_Frame([root])]
    opened: set[int] = set()
    while True:
        frame = frames[-1]
        for item in frame.left:
            new = place(item)
            if new is not _INSIDE:
                frame.new.append(new)
                continue
            if id(item) in opened:
                raise ValueError("Circular reference detected")
            opened.add(id(item))
            frames.append(_Frame(item))
            break
        else:
            made = frames.pop().made()
            if not frames:
                return made[0]
            opened.remove(id(frame.old))
            frames[-1].new.append(made)


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
            return _arrow.read_value(memoryview(data), "(inline)")
        dtype, shape, element = found["dtype"], found["shape"], found.get("element")
        if dtype is None:
            return memoryview(data)
        if not isinstance(element, str | None):
            raise TypeError("element must be text")
        array: np.ndarray[Any, Any] = np.frombuffer(data, stored_dtype(dtype))
        array = array if shape is None else array.reshape(shape)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidHandleError(
            f"invalid inline value: {error}",
            remedy="use the same version of the library on both sides",
        ) from error
    return restore(array, element, "(inline)")


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
            return _rebuilt(value, self._place)
        except BaseException:
            for handle in self.shared:
                with contextlib.suppress(ShmError):
                    release(handle, dir=self._dir)
            self.shared.clear()
            raise

    def _place(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value) if len(value) * 4 >= self._threshold else value
        # Those that inherit from them are objects and lists to JSON, too.
        if isinstance(value, dict):
            return _INSIDE if special(value) is None else value  # the tool's own handle
        if isinstance(value, list | tuple):
            return _INSIDE
        return self._share(value) if is_shareable(value) else value

    def _text(self, text: str) -> Any:
        try:
            data = text.encode()
        except UnicodeEncodeError:
            return text  # a lone surrogate: JSON has a way to write it
        return self._share(data) if len(data) >= self._threshold else text

    def _share(self, value: Any) -> Any:
        try:
            if _is_empty(value):
                return inline(value, None)  # a region for nothing costs more than it
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
    if plain is None:
        raise error or UnsupportedError(
            f"an object of type {type(value).__qualname__!r} has no plain form"
        )
    data, described = plain
    if error is not None and len(data) > INLINE_MOST:
        raise error
    return {
        INLINE: 1,
        "base64": base64.b64encode(data).decode("ascii"),
        **described,
        "reason": None if error is None else error.code,
    }


def _plain(value: Any) -> tuple[bytes, dict[str, Any]] | None:
    """Bytes, and what they are; none of what only `share` knows how to take.

    Raises:
        UnsupportedError: It is made of objects, say.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), {"dtype": None, "shape": None, "format": "raw"}
    if isinstance(value, np.ndarray):
        array = value
    elif _arrow.is_arrow(value):
        data = _arrow.stream_bytes(_arrow.as_table(value))
        return data, {"dtype": None, "shape": None, "format": "arrow_ipc"}
    else:
        try:
            array = np.from_dlpack(value)
        except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
            return None
    dtype, element = storage_of(array.dtype)
    described = {"dtype": dtype, "shape": list(array.shape), "format": "numpy"}
    return array.tobytes(), described if element is None else {**described, "element": element}


def share_for_good(namespace: str | None, dir: StrPath | None) -> Sharer:
    """A way to share that gives each value away to whoever has its handle."""

    def give(value: Any) -> Handle:
        stay(namespace, dir)
        return share(value, namespace=namespace, dir=dir, transfer=True)

    return give
