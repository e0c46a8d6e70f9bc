"""Arrays that lie in shared memory before they are shared: `empty`, `zeros`, `empty_like`."""

from __future__ import annotations

import contextlib
import math
import operator
import sys
import weakref
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from . import _native
from ._api import StrPath
from ._elements import storage_of
from ._errors import (
    CopyNeededError,
    InvalidOptionError,
    ShmError,
    UnsupportedError,
    ViewsAliveError,
)
from ._kinds import check_dimensions, order_of
from ._native import Blank, Writer

if TYPE_CHECKING:
    import numpy.typing as npt

    _Order = Literal["C", "F"]

Dims = tuple[int, ...]


class Place(NamedTuple):
    """Where a segment is, as it was given."""

    namespace: str | None
    dir: StrPath | None


class Region(NamedTuple):
    """What an array of `empty` fills."""

    writer: Writer
    blank: Blank
    root: weakref.ref[npt.NDArray[Any]]
    """The array that all others over this memory have as their base."""
    address: int
    nbytes: int
    place: Place
    """As it was meant then: neither is ``None``."""


_regions: dict[int, Region] = {}
"""By the id of the root, which leaves as it dies."""


class _Holder:
    """Holds one thing, by one reference."""

    def __init__(self, base: object) -> None:
        self.base = base


_held = _Holder(object())
_ALONE = sys.getrefcount(_held.base)
"""What a thing counts that one other holds."""


def fill(
    writer: Writer, dims: Dims, dtype: np.dtype[Any], order: _Order, place: Place
) -> npt.NDArray[Any]:
    """A writable array over the only slot of a new segment."""
    stored = storage_of(dtype).dtype
    blank = writer._blank(dims, stored, order)
    root: npt.NDArray[Any] = np.asarray(blank)
    key = id(root)
    watch = weakref.ref(root, lambda _: _discard(key))
    _regions[key] = Region(writer, blank, watch, root.ctypes.data, int(root.nbytes), place)
    return root.view(dtype) if root.dtype != dtype else root.view()


def check(
    shape: int | tuple[int, ...], dtype: npt.DTypeLike, order: str
) -> tuple[Dims, np.dtype[Any], int]:
    """Shape, dtype and bytes of an array, or the error that says what is wrong with them."""
    if order not in ("C", "F"):  # a tuple: what is given may have no hash
        raise InvalidOptionError(f"invalid option order: expected 'C' or 'F', got {order!r}")
    dims = _dims(shape)
    if any(dim < 0 for dim in dims):
        raise InvalidOptionError(
            "invalid option shape: expected a whole number from 0 or a sequence of them, "
            f"got {shape!r}"
        )
    kind = np.dtype(dtype)
    check_dimensions(len(dims))
    storage_of(kind)
    if kind.subdtype is not None:
        raise UnsupportedError(
            f"an array cannot have the dtype {kind}", remedy="make its shape part of the array's"
        )
    return dims, kind, math.prod(dims) * kind.itemsize


def _dims(shape: Any) -> Dims:
    """The shape as a tuple; with a negative dimension for what is none."""
    with contextlib.suppress(TypeError):
        return (operator.index(shape),)
    with contextlib.suppress(TypeError):
        return tuple(operator.index(dim) for dim in shape)
    return (-1,)


def of_nothing(dims: Dims, dtype: np.dtype[Any], order: _Order) -> npt.NDArray[Any]:
    """An array without a byte, which lies nowhere."""
    try:
        return np.empty(dims, dtype, order)
    except ValueError as error:  # a dimension, or all but the 0, beyond what can be counted
        raise InvalidOptionError(f"invalid option shape: {error}, got {dims}") from error


def region_of(obj: object) -> Region | None:
    """The region that an array lies in and that was not shared yet."""
    if type(obj) is not np.ndarray:  # a masked array is more than its memory
        return None
    region = _regions.get(id(obj.base))
    return region if region is not None and region.root() is obj.base else None


def seal(region: Region, array: npt.NDArray[Any]) -> None:
    """Make what an array holds the value of its region. From then on nobody can write to it.

    Raises:
        ViewsAliveError: Other arrays over the memory live, which could.
        CopyNeededError: The array is not all of the region.
        TruncatedError: The file was cut. What the array holds is lost; it stays read-only.
    """
    storage = storage_of(array.dtype)
    whole = (
        array.nbytes == region.nbytes
        and array.ctypes.data == region.address
        and (array.flags.c_contiguous or array.flags.f_contiguous)
    )
    if not whole:
        raise CopyNeededError(
            f"the array is not all of its region, which has {region.nbytes} bytes in one piece",
            remedy="share the array that empty() returned",
            segment=region.writer.name,
        )
    if sys.getrefcount(array.base) > _ALONE:
        raise ViewsAliveError(
            "other arrays over the memory of this one live, and could write to it",
            remedy="delete them (slices, reshaped and transposed ones), then share it",
            segment=region.writer.name,
        )
    root = region.root()
    # Of threads that share it at once, one does.
    if root is None or _regions.pop(id(root), None) is not region:
        raise CopyNeededError(
            "another thread shares this array right now",
            remedy="share it once",
            segment=region.writer.name,
        )
    # The root first: an array can be made writable again as long as its base is.
    root.setflags(write=False)
    array.setflags(write=False)
    try:
        region.blank.seal(storage.dtype, array.shape, order_of(array))
    except BaseException:
        # Numpy gives the right to write back to nobody who does not own the memory. But the region
        # goes with its last array, as one that was not shared.
        _regions[id(root)] = region
        raise


def _discard(key: int) -> None:
    """The last array over a region went, and nobody has shared it."""
    region = _regions.pop(key, None)
    if region is not None:
        with contextlib.suppress(ShmError):  # removed by somebody else, or a forked child's copy
            region.writer._discard()


def remove_all() -> None:
    """At exit: the files go; the memory stays with the arrays as long as there is a process."""
    left = list(_regions.values())
    _regions.clear()
    for region in left:
        with contextlib.suppress(ShmError):
            _native.remove(region.writer.name, region.place._asdict())


def forget_all() -> None:
    """In a forked child: what its parent fills is the parent's to share."""
    _regions.clear()
