"""`share` an object under a handle, `resolve` the handle in another process, `release` it.

What can be shared is in `_kinds`, in what forms it is resolved in `_forms`, arrays that need no
copy in `_blank`.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import secrets
import sys
import threading
from collections.abc import Mapping
from copy import deepcopy as copy_of
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from . import _blank, _copies, _forms, _kinds, _native
from ._api import HugePages, StrPath, create_pooled
from ._elements import storage_of
from ._errors import (
    CopyNeededError,
    InvalidHandleError,
    InvalidOptionError,
    NotFoundError,
    ShmError,
    ViewsAliveError,
)
from ._kinds import order_of
from ._native import Writer

if TYPE_CHECKING:
    import numpy.typing as npt

    from ._forms import _Form

Handle = dict[str, Any]
"""What `share` returns: a dictionary that survives JSON."""


class _Own(NamedTuple):
    """Something that this process shared and has not released: it lives as long as its writer."""

    handle: Handle
    dir: str
    writer: Writer


PREFAULT_FROM = 1 << 20
"""Bytes from which mapping all pages in one go pays."""

HUGE_FROM = 4 << 20
"""Bytes from which huge pages pay: fresh small ones cost several times what the copy does."""

LONGEST_TTL = 7 * 24 * 3600.0
"""Seconds for which a value that was given away can wait."""

_shared: dict[str, _Own] = {}
"""By token."""
_lock = threading.RLock()
"""Reentrant, as all locks of this package: while one is held the garbage collector or a signal's
handler may run what shares and releases, by the destructor of an object or of a stream."""


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
    copy: bool | None = None,
) -> Handle:
    """Put an object into a sealed segment; returns the handle that another process resolves.

    The bytes are copied once, into shared memory; those of an array that `empty` made are there
    already, and are not: the array cannot be written to any more. The segment lives until
    `release`, or until this interpreter ends.

    Args:
        obj: ``bytes``, ``bytearray``, ``memoryview`` or another buffer (resolved as a
            memoryview); a numpy array of any layout, a torch tensor or what numpy can take by
            DLPack (resolved as an array, in C or Fortran order if it has one of them); a pyarrow
            Table, RecordBatch or Array, a DataFrame or Series of pandas or polars, or what offers
            an Arrow stream (resolved as Arrow).
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
        copy: ``False`` shares only what lies in shared memory already (see `empty`), ``True``
            copies that too; by default it is copied only if it must be, and `copy_stats` tells.

    Raises:
        UnsupportedError: The object (or its dtype) cannot be shared; the message says what to do.
        InvalidOptionError: ``ttl`` is not above 0, or more than seven days; ``copy`` is none of the
            three.
        InvalidSizeError: It has more than 1 GiB.
        ResourceExhaustedError: ``/dev/shm`` is full.
        CopyNeededError: With ``copy=False``, the object lies elsewhere.
        ViewsAliveError: With ``copy=False``, other arrays over the same memory live.
    """
    options = _Options(module, huge_pages, integrity, permissions)
    if copy not in (None, False, True):  # a tuple: what is given may have no hash
        raise InvalidOptionError(f"invalid option copy: expected None, False or True, got {copy!r}")
    if transfer:
        check_ttl(ttl)  # before an array of `empty` is sealed
    given = ttl if transfer else None
    place = _blank.Place(namespace, dir)
    otherwise = any(option is not None for option in (name, *options))
    sealed, why = _seal(obj, copy, place, otherwise)
    if sealed is not None:
        return _own(sealed.writer, sealed.place.dir, storage_of(obj.dtype).element, given, None)
    if copy is False:
        raise CopyNeededError(
            f"an object of type {type(obj).__qualname__!r} cannot be shared without a copy: {why}",
            remedy="fill an array of snakepit_shm.empty(), or leave copy=False out",
        )
    plan = _kinds.plan(obj)
    writer = _create(plan.nbytes, name, place, options)
    try:
        plan.fill(writer)
        writer.seal()
    except BaseException:
        _give_up(writer)
        raise
    return _own(writer, dir, plan.element, given, why)


def check_ttl(ttl: float) -> None:
    """Refuse what is no time for which a value that was given away can wait."""
    if not isinstance(ttl, int | float) or not 0 < ttl <= LONGEST_TTL:
        raise InvalidOptionError(
            f"invalid option ttl: expected more than 0 and at most {LONGEST_TTL:.0f} s, "
            f"got {ttl!r}",
            remedy="pass how long the value may wait to be fetched",
        )


class _Options(NamedTuple):
    """Of `create`, that `share` and `empty` hand on."""

    module: str | None
    huge_pages: HugePages | None
    integrity: Literal["none", "crc32c"] | None
    permissions: int | None


def _seal(
    obj: Any, copy: bool | None, place: _blank.Place, otherwise: bool
) -> tuple[_blank.Region | None, str]:
    """The region that an object fills, sealed; or ``None``, and why it is to be copied."""
    region = _blank.region_of(obj)
    if region is None:
        return None, "it does not lie in shared memory that was not shared yet"
    if copy:
        return None, "asked for with copy=True"
    asked = _native.place(*place)
    elsewhere = any(
        given is not None and mine != its
        for given, mine, its in zip(place, asked, region.place, strict=True)
    )
    if otherwise or elsewhere:
        return None, "its region has the name, place and options that empty() was given"
    try:
        _blank.seal(region, obj)
    except (CopyNeededError, ViewsAliveError) as error:
        if copy is False:
            raise
        return None, str(error)
    return region, ""


def _create(nbytes: int, name: str | None, place: _blank.Place, options: _Options) -> Writer:
    return create_pooled(
        f"share-{os.getpid()}-{secrets.token_hex(8)}" if name is None else name,
        # What is more than a machine word is too much anyway.
        _native.round_up_capacity(min(max(nbytes, 1), sys.maxsize)),
        namespace=place.namespace,
        dir=place.dir,
        slots=1,
        notify=False,
        # It is filled at once: no fault a page.
        prefault=nbytes >= PREFAULT_FROM,
        **options._replace(
            huge_pages="prefer"
            if options.huge_pages is None and nbytes >= HUGE_FROM
            else options.huge_pages
        )._asdict(),
    )


def _give_up(writer: Writer) -> None:
    """Close what could not be shared. What went wrong says more than what goes wrong here.

    An interrupted copy leaves an array over the slot in its traceback; the segment goes with that.
    """
    with contextlib.suppress(ShmError):
        writer.close()


def _own(
    writer: Writer, dir: StrPath | None, element: str | None, given: float | None, why: str | None
) -> Handle:
    """The handle of a sealed segment that this process has, or gives away for that long."""
    try:
        handle: Handle = writer.handle()
        if given is not None:
            writer.give_away(given)
    except BaseException:
        _give_up(writer)
        raise
    if element is not None:
        handle["element"] = element
    # Nothing is copied of what has no bytes.
    _copies.shared(handle["name"], handle["bytes"], why if handle["bytes"] else None)
    _drop_removed()
    if given is None:
        # Where that is now: the environment or the working directory may be another later.
        own = _Own(copy_of(handle), _native.place(None, dir)[1], writer)
        with _lock:
            _shared[handle["token"]] = own
    return handle


def empty(
    shape: int | tuple[int, ...],
    dtype: npt.DTypeLike = float,
    order: _blank._Order = "C",
    *,
    name: str | None = None,
    namespace: str | None = None,
    dir: StrPath | None = None,
    module: str | None = None,
    huge_pages: HugePages | None = None,
    integrity: Literal["none", "crc32c"] | None = None,
    permissions: int | None = None,
) -> npt.NDArray[Any]:
    """A writable array in shared memory, to be filled and then shared without a copy.

    ``share(array)`` seals what it holds: nobody can write to it any more, this process included.
    Other arrays over its memory (slices, reshaped ones) must be gone by then, or the value is
    copied after all. So must whatever else looks at it (a memoryview, a tensor, a masked array):
    that is not found, and what is written through it afterwards reaches those who have the handle.
    An array that goes without having been shared leaves nothing behind.

    Args:
        shape: Length of each dimension, at most six.
        dtype: As `share` takes it.
        order: ``"C"`` or ``"F"``.
        name: As in `share`.
        namespace: As in `create`.
        dir: As in `create`.
        module: As in `create`.
        huge_pages: As in `share`.
        integrity: As in `create`.
        permissions: As in `create`.

    Returns:
        An array of unspecified content (an older value's, in kept memory).

    Raises:
        UnsupportedError: There can be no such array in shared memory.
        InvalidOptionError: The shape or the order is none.
        InvalidSizeError: It has more than 1 GiB.
        ResourceExhaustedError: ``/dev/shm`` is full.
    """
    dims, kind, nbytes = _blank.check(shape, dtype, order)
    if nbytes == 0:
        return _blank.of_nothing(dims, kind, order)
    place = _blank.Place(namespace, dir)
    writer = _create(nbytes, name, place, _Options(module, huge_pages, integrity, permissions))
    try:
        return _blank.fill(writer, dims, kind, order, _blank.Place(*_native.place(*place)))
    except BaseException:
        with contextlib.suppress(ShmError):  # what went wrong says more
            writer._discard()
        raise


def zeros(
    shape: int | tuple[int, ...],
    dtype: npt.DTypeLike = float,
    order: _blank._Order = "C",
    **options: Any,
) -> npt.NDArray[Any]:
    """`empty`, filled with zeros. The options are the same."""
    array = empty(shape, dtype, order, **options)
    # Whole elements: between the fields of records there would be what an older value had there.
    memory = array if array.base is None else array.base
    memory[...] = np.zeros((), memory.dtype)
    return array


def empty_like(array: npt.NDArray[Any], **options: Any) -> npt.NDArray[Any]:
    """`empty` with the shape, the dtype and the order of an array. The options are the same."""
    return empty(array.shape, array.dtype, "F" if order_of(array) == "F" else "C", **options)


def resolve(
    handle: Mapping[str, Any] | str,
    *,
    dir: StrPath | None = None,
    as_: _Form | None = None,
    copy: bool | None = None,
) -> Any:
    """What a handle names, in place: nothing is copied, and nothing can change it.

    Args:
        handle: The dictionary that `share` (or Elixir's ``share``) returned, or its JSON text.
        dir: As in `create`.
        as_: The form: ``"numpy"``, ``"memoryview"``, ``"bytes"``, ``"arrow"``, ``"pandas"``,
            ``"polars"`` or ``"torch"``; by default the format's own.
        copy: ``False`` never copies, ``True`` always does, and what it returns is the caller's
            own; by default it is copied only where the form cannot be had otherwise, and
            `copy_stats` tells. Bytes are always copied. So is a tensor unless ``copy=False``:
            torch has none that is read-only, and writing to this memory ends the process.

    Returns:
        A read-only numpy array, a read-only memoryview or Arrow (a Table; an Array of what was one
        or a Series), by the handle's format, or the form asked for. The memory stays mapped as long
        as the object or anything made of it lives.

    Raises:
        InvalidHandleError: A field is missing, unknown or wrong, or the segment is not (any more)
            the one that the handle was made for.
        NotFoundError: The segment was removed.
        UnsupportedError: The value has no such form, or the library for it is not installed.
        CopyNeededError: With ``copy=False``, it cannot be had in that form without a copy.
    """
    view, element = _native.open_handle(_as_json(handle), dir)
    return _forms.resolve(view, element, as_, copy)


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
    own = _shared.get(token) if isinstance(token, str) else None
    # Compared as text: in Python, True equals 1 and 2.0 equals 2.
    if own is None or json.dumps(own.handle, sort_keys=True) != canonical:
        return None
    with _lock:
        return _shared.pop(token, None)


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
    oldest: list[_Own] = []
    # Changed by a destructor in between: the next call looks.
    with _lock, contextlib.suppress(RuntimeError):
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


_JSON = json.JSONEncoder(allow_nan=False)
"""Made once: `json.dumps` makes one for each call that is not the plain one."""


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
        return _JSON.encode(dict(handle))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidHandleError(
            f"invalid handle: {error}",
            remedy="pass the handle exactly as share returned it",
        ) from error


def _release_all() -> None:
    """At exit: what this process shared goes with it, and what it was about to share."""
    _blank.remove_all()
    with _lock:
        left = list(_shared.values())
        _shared.clear()
    for own in left:
        # Gone already, or removed by somebody else: there is nothing left to clean.
        with contextlib.suppress(ShmError):
            _remove(own)


def _forget_all() -> None:
    """In a forked child: what its parent shared is the parent's to release."""
    global _lock  # noqa: PLW0603 - a thread of the parent may have held it
    _lock = threading.RLock()
    _shared.clear()
    _blank.forget_all()
    _copies.forget_all()


atexit.register(_release_all)
os.register_at_fork(after_in_child=_forget_all)
