"""What can be shared: each kind of object as bytes, and how these get into a slot."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from . import _arrow
from ._elements import EXTENSIONS, Storage, opaque, storage_of
from ._errors import UnsupportedError
from ._native import Writer

if TYPE_CHECKING:
    import numpy.typing as npt

MOST_DIMENSIONS = 6
"""That a slot's header can describe."""

_CPU = 1
"""DLPack's device types whose memory this processor reads: its own, and pinned for CUDA or ROCm."""
_READABLE = frozenset({_CPU, 3, 11})


class Plan(NamedTuple):
    """How an object is shared."""

    nbytes: int
    """That its value has; 0 for one without any."""
    fill: Callable[[Writer], Any]
    """Publishes it."""
    element: str | None = None
    """What its handle says beyond its dtype."""


def plan(obj: Any) -> Plan:
    """How `obj` is shared.

    Raises:
        UnsupportedError: It cannot be; the message says what to do.
    """
    if isinstance(obj, bytes | bytearray):
        return _bytes(obj, len(obj))
    if isinstance(obj, np.ma.MaskedArray):
        raise UnsupportedError(
            "a masked array cannot be shared as one value",
            remedy="share obj.filled(value), or obj.data and obj.mask by themselves",
        )
    if isinstance(obj, np.ndarray | np.generic):
        array = np.asarray(obj)
        return array_plan(array, storage_of(array.dtype))
    if _arrow.is_arrow(obj):
        table = _arrow.as_table(obj)
        nbytes = _arrow.table_nbytes(table)
        return Plan(nbytes, lambda writer: _arrow.write_table(writer, table, nbytes))
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(obj, torch.Tensor):
        return array_plan(*_of_torch(torch, obj))
    if hasattr(obj, "__dlpack__") and not isinstance(obj, type):
        return _of_dlpack(obj)
    try:
        view = memoryview(obj)
    except TypeError:
        raise UnsupportedError(
            f"an object of type {type(obj).__qualname__!r} cannot be shared",
            remedy="share bytes, a buffer, a numpy array, a tensor or an Arrow table "
            "(encode text first: text.encode())",
        ) from None
    return _bytes(view, view.nbytes)


def _bytes(obj: Any, nbytes: int) -> Plan:
    if nbytes == 0:
        return Plan(0, lambda writer: writer._write_nothing())
    return Plan(nbytes, lambda writer: writer.write(obj))


def array_plan(array: npt.NDArray[Any], storage: Storage) -> Plan:
    """How an array is shared whose elements are stored like that."""
    check_dimensions(array.ndim)
    dtype, shape = storage.dtype, array.shape
    if array.size == 0:
        return Plan(
            0, lambda writer: writer._write_nothing(dtype=dtype, shape=shape), storage.element
        )
    # Whole elements, also of records: what lies between their fields would be an older value's.
    memory = array.view(dtype) if array.dtype != np.dtype(dtype) else array
    order = order_of(array)
    if order == "F":
        memory = memory.T
    return Plan(
        int(array.nbytes),
        lambda writer: writer.write(memory, dtype=dtype, shape=shape, order=order),
        storage.element,
    )


def order_of(array: npt.NDArray[Any]) -> Literal["C", "F"]:
    """In which order the elements of an array are shared: in its own, if it has one."""
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def check_dimensions(ndim: int) -> None:
    """Refuse what no slot header can describe."""
    if ndim > MOST_DIMENSIONS:
        raise UnsupportedError(
            f"an array of {ndim} dimensions cannot be shared, {MOST_DIMENSIONS} at most",
            remedy="reshape it, and send its shape along",
        )


def _of_torch(torch: Any, tensor: Any) -> tuple[npt.NDArray[Any], Storage]:
    if tensor.requires_grad:
        raise UnsupportedError(
            "a tensor that requires grad cannot be shared: its history would be lost",
            remedy="share tensor.detach()",
        )
    if tensor.device.type != "cpu":
        raise UnsupportedError(
            f"a tensor on device {str(tensor.device)!r} cannot be shared",
            remedy="share tensor.cpu()",
        )
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise UnsupportedError(
            f"a tensor of layout {tensor.layout} and dtype {tensor.dtype} cannot be shared",
            remedy="share tensor.to_dense() or tensor.dequantize()",
        )
    tensor = tensor.resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if name in EXTENSIONS:
        size = int(tensor.element_size())
        bits = tensor.view(torch.int16 if size == 2 else torch.uint8)  # noqa: PLR2004
        return bits.numpy(), opaque(name, size)
    try:
        array: npt.NDArray[Any] = tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise UnsupportedError(
            f"a tensor of dtype {tensor.dtype} cannot be shared: {error}",
            remedy="convert it (tensor.to(dtype))",
        ) from error
    return array, storage_of(array.dtype)


def _of_dlpack(obj: Any) -> Plan:
    kind = type(obj).__qualname__
    device = getattr(obj, "__dlpack_device__", None)
    try:
        where, number = (_CPU, 0) if device is None else map(int, device())
        if where not in _READABLE:
            raise UnsupportedError(
                f"an object of type {kind!r} on device {where}:{number} (DLPack) cannot be shared",
                remedy="move it to the CPU first",
            )
        array: npt.NDArray[Any] = np.from_dlpack(obj)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedError(
            f"an object of type {kind!r} cannot be shared: numpy takes no such tensor ({error})",
            remedy="convert it to a numpy array first",
        ) from error
    return array_plan(array, storage_of(array.dtype))
