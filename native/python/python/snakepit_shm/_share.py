"""`share` an object under a handle, `resolve` the handle in another process, `release` it."""

from __future__ import annotations

import atexit
import contextlib
import copy
import itertools
import json
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from . import _arrow, _native
from ._api import HugePages, StrPath, create_pooled
from ._errors import (
    InvalidHandleError,
    NotFoundError,
    OutOfBoundsError,
    ShmError,
    UnsupportedError,
)
from ._native import Writer

Handle = dict[str, Any]
"""What `share` returns: a dictionary that survives JSON."""


class _Own(NamedTuple):
    """Something that this process shared and has not released: it lives as long as its writer."""

    handle: Handle
    dir: StrPath | None
    writer: Writer


PREFAULT_FROM = 1 << 20
"""Bytes from which mapping all pages in one go pays."""

HUGE_FROM = 4 << 20
"""Bytes from which huge pages pay: fresh small ones cost several times what the copy does."""

_shared: dict[str, _Own] = {}
"""By token."""
_lock = threading.Lock()


def share(
    obj: Any,
    *,
    name: str | None = None,
    namespace: str | None = None,
    dir: StrPath | None = None,
    module: str | None = None,
    transfer: bool = False,
    ttl: float = 60.0,
    huge_pages: HugePages | None = None,
    integrity: Literal["none", "crc32c"] | None = None,
    permissions: int | None = None,
) -> Handle:
    """Put an object into a sealed segment; returns the handle that another process resolves.

    The bytes are copied once, into shared memory. The segment lives until `release`, or until
    this interpreter ends.

    Args:
        obj: ``bytes``, ``bytearray``, ``memoryview`` or another buffer (resolved as a
            memoryview), a numpy array of any layout or what numpy can take by DLPack (resolved as
            an array), a pyarrow Table or RecordBatch (resolved as a Table).
        name: Of the segment; default a fresh one.
        namespace: As in `create`.
        dir: As in `create`.
        module: As in `create`.
        transfer: Give the segment away: this process forgets it. Whoever fetches it from Elixir
            owns it then; else it lives until somebody releases it, or ``ttl`` is over. For results
            that a worker hands over.
        ttl: Seconds that a segment which was given away waits for somebody to take it, up to seven
            days. Only with ``transfer``.
        huge_pages: As in `create`; default ``"prefer"`` from 4 MiB on.
        integrity: As in `create`.
        permissions: As in `create`.

    Raises:
        UnsupportedError: The object (or its dtype) cannot be shared; the message says what to do.
        OutOfBoundsError: It has no bytes.
        InvalidOptionError: ``ttl`` is not above 0, or more than seven days.
        InvalidSizeError: It has more than 1 GiB.
        ResourceExhaustedError: ``/dev/shm`` is full.
    """
    nbytes, fill = _plan(obj)
    if nbytes == 0:
        raise OutOfBoundsError(
            f"an object of type {type(obj).__qualname__!r} without a single byte cannot be shared",
            remedy="a value has at least 1 byte; say in your message that there is none",
        )
    writer = create_pooled(
        f"share-{os.getpid()}-{secrets.token_hex(8)}" if name is None else name,
        _native.round_up_capacity(nbytes),
        namespace=namespace,
        dir=dir,
        module=module,
        slots=1,
        notify=False,
        huge_pages="prefer" if huge_pages is None and nbytes >= HUGE_FROM else huge_pages,
        # It is filled at once: no fault a page.
        prefault=nbytes >= PREFAULT_FROM,
        integrity=integrity,
        permissions=permissions,
    )
    try:
        fill(writer)
        writer.seal()
        handle: Handle = writer.handle()
        if transfer:
            writer.give_away(ttl)
    except BaseException:
        writer.close()
        raise
    _drop_removed()
    if not transfer:
        with _lock:
            _shared[handle["token"]] = _Own(copy.deepcopy(handle), dir, writer)
    return handle


def resolve(handle: Mapping[str, Any] | str, *, dir: StrPath | None = None) -> Any:
    """What a handle names, in place: nothing is copied, and nothing can change it.

    Args:
        handle: The dictionary that `share` (or Elixir's ``share``) returned, or its JSON text.
        dir: As in `create`.

    Returns:
        A read-only numpy array, a read-only memoryview or a pyarrow Table, by the handle's
        format. The memory stays mapped as long as the object or anything made of it lives.

    Raises:
        InvalidHandleError: A field is missing, unknown or wrong, or the segment is not (any more)
            the one that the handle was made for.
        NotFoundError: The segment was removed.
    """
    view = _native.open_handle(_as_json(handle), dir)
    if view.format == "numpy":
        return view.numpy()
    if view.format == "arrow_ipc":
        return _arrow.read_table(view.memoryview(), view.segment)
    return view.memoryview()


def release(handle: Mapping[str, Any] | str, *, dir: StrPath | None = None) -> None:
    """Remove what a handle names, whoever shared it. Who has resolved it keeps what is mapped.

    Raises:
        InvalidHandleError: As in `resolve`; a segment that took the name since then is left alone.
        NotFoundError: It was removed before.
    """
    text = _as_json(handle)
    own = _take_own(text)
    if own is None:
        _native.remove_handle(text, dir)
        return
    try:
        _remove(own)
    except NotFoundError:
        # Somebody else removed it before. What is left is the memory that this process held.
        return


def _take_own(text: str) -> _Own | None:
    """Take what exactly this handle names out of the table, if this process shared it."""
    try:
        handle = json.loads(text)
        token = handle["token"]
        canonical = json.dumps(handle, sort_keys=True)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # no handle: the core says what is wrong with it
    with _lock:
        own = _shared.get(token) if isinstance(token, str) else None
        # Compared as text: in Python, True equals 1 and 2.0 equals 2.
        if own is None or json.dumps(own.handle, sort_keys=True) != canonical:
            return None
        return _shared.pop(token)


def _remove(own: _Own) -> None:
    """Remove the segment, also while others have it mapped; keep its memory if that may be."""
    try:
        own.writer._retire()
    finally:
        own.writer.close()


_LOOKED_AT = 2
"""How many older segments a call of `share` looks at; more than one, so that it catches up."""


def _drop_removed() -> None:
    """Let go of segments that others removed (Elixir's ``deallocate_region``).

    Their memory stays taken as long as this process maps it. Looks at a few, the oldest first.
    """
    with _lock:
        oldest = list(itertools.islice(_shared.values(), _LOOKED_AT))
    for own in oldest:
        token, name, namespace = (own.handle[key] for key in ("token", "name", "namespace"))
        gone = False
        try:
            _native.inspect(name, {"namespace": namespace, "dir": own.dir})
        except NotFoundError:
            gone = True
        except ShmError:
            pass  # there, but out of order: not ours to judge
        with _lock:
            taken = _shared.pop(token, None)
            if taken is not None and not gone:
                _shared[token] = taken  # the youngest now
        if taken is not None and gone:
            taken.writer.close()


def _plan(obj: Any) -> tuple[int, Callable[[Writer], Any]]:
    """How many bytes `obj` takes and how it is written."""
    if isinstance(obj, bytes | bytearray):
        return len(obj), lambda writer: writer.write(obj)
    if _arrow.is_table(obj):
        nbytes = _arrow.table_nbytes(obj)
        return nbytes, lambda writer: _arrow.write_table(writer, obj, nbytes)
    if isinstance(obj, np.ma.MaskedArray):
        raise UnsupportedError(
            "a masked array cannot be shared as one value",
            remedy="share obj.filled(value), or obj.data and obj.mask by themselves",
        )
    if isinstance(obj, np.ndarray | np.generic):
        return int(obj.nbytes), lambda writer: writer.write(obj)
    if hasattr(obj, "__dlpack__"):
        array = np.from_dlpack(obj)
        return int(array.nbytes), lambda writer: writer.write(array)
    try:
        view = memoryview(obj)
    except TypeError:
        raise UnsupportedError(
            f"an object of type {type(obj).__qualname__!r} cannot be shared",
            remedy="share bytes, a buffer, a numpy array or a pyarrow Table "
            "(encode text first: text.encode())",
        ) from None
    return view.nbytes, lambda writer: writer.write(view)


def _as_json(handle: Mapping[str, Any] | str) -> str:
    if isinstance(handle, str):
        # Lone surrogates are no JSON; the core refuses what replaces them.
        return handle.encode(errors="replace").decode()
    if not isinstance(handle, Mapping):
        raise InvalidHandleError(
            f"invalid handle: expected a dictionary or JSON text, got {type(handle).__qualname__}",
            remedy="pass the handle exactly as share returned it",
        )
    try:
        return json.dumps(dict(handle), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidHandleError(
            f"invalid handle: {error}",
            remedy="pass the handle exactly as share returned it",
        ) from error


def _release_all() -> None:
    """At exit: what this process shared goes with it."""
    with _lock:
        left = list(_shared.values())
        _shared.clear()
    for own in left:
        # Gone already, or removed by somebody else: there is nothing left to clean.
        with contextlib.suppress(ShmError):
            _remove(own)
    _native.drain_pools()


def _forget_all() -> None:
    """In a forked child: what its parent shared is the parent's to release."""
    global _lock  # noqa: PLW0603 - a thread of the parent may have held it
    _lock = threading.Lock()
    _shared.clear()


atexit.register(_release_all)
os.register_at_fork(after_in_child=_forget_all)
