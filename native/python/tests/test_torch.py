"""Tensors of torch, by a stand-in: the same calls over numpy, without the library's 500 MB.

It has what `share` and `resolve` use of torch, each as torch's documentation describes it.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import snakepit_shm as shm
from conftest import Place


class Dtype:
    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"torch.{self.name}"


NAMES = ("uint8", "int16", "int64", "float16", "float32", "float64", "bool", "complex64",
         "bfloat16", "float8_e4m3fn")  # fmt: skip
DTYPES = {name: Dtype(name) for name in NAMES}


class Tensor:
    is_quantized = False
    layout = "strided"

    def __init__(self, array: Any, **attributes: Any) -> None:
        self.array = array
        self.requires_grad = False
        self.device = types.SimpleNamespace(type="cpu")
        self.dtype = DTYPES[array.dtype.name]
        vars(self).update(attributes)

    def resolve_conj(self) -> Tensor:
        return self

    resolve_neg = resolve_conj

    def element_size(self) -> int:
        return int(self.array.itemsize)

    def view(self, dtype: Dtype) -> Tensor:
        return Tensor(self.array.view(dtype.name))

    def numpy(self) -> Any:
        if self.dtype.name in {"bfloat16", "float8_e4m3fn"}:
            raise TypeError(f"Got unsupported ScalarType {self.dtype.name}")
        return self.array

    def reshape(self, shape: tuple[int, ...]) -> Tensor:
        return Tensor(self.array.reshape(shape))

    def permute(self, *axes: int) -> Tensor:
        return Tensor(self.array.transpose(axes))


def numpy_of(dtype: Dtype) -> Any:
    return getattr(ml_dtypes, dtype.name, None) or np.dtype(dtype.name)


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = types.ModuleType("torch")
    vars(module).update(DTYPES)
    module.Tensor = Tensor
    module.strided = "strided"
    module.frombuffer = lambda buffer, dtype: Tensor(np.frombuffer(buffer, numpy_of(dtype)))
    module.empty = lambda shape, dtype: Tensor(np.empty(shape, numpy_of(dtype)))
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 3, 4), (), (3, 0)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.usefixtures("torch")
def test_tensors_come_back(place: Place, name: str, shape: tuple[int, ...], order: Any) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(numpy_of(DTYPES[name])).copy(order)
    handle = place.share(Tensor(array))
    got = place.resolve(handle, as_="torch")
    assert isinstance(got, Tensor)
    assert got.dtype is DTYPES[name]
    assert (got.array == array).all()
    assert got.array.strides == array.strides or 0 in shape
    if array.size:
        assert got.array.flags.writeable, "a copy: tensors can be written to"
        in_place = place.resolve(handle, as_="torch", copy=False)
        assert in_place.array.ctypes.data == place.resolve(handle).ctypes.data
    assert place.resolve(handle).dtype == array.dtype
    place.release(handle)


@pytest.mark.usefixtures("torch")
def test_tensors_that_cannot_be_shared_say_what_to_do(place: Place) -> None:
    array = np.zeros(3, "f4")
    for attributes, what in (
        ({"requires_grad": True}, "detach"),
        ({"device": types.SimpleNamespace(type="cuda")}, "cpu"),
        ({"layout": "sparse_coo"}, "to_dense"),
        ({"is_quantized": True}, "dequantize"),
    ):
        with pytest.raises(shm.UnsupportedError, match=what):
            place.share(Tensor(array, **attributes))
    assert place.files() == []


@pytest.mark.usefixtures("torch")
def test_values_that_are_no_tensors(place: Place) -> None:
    for obj in (np.zeros(3, ">f4"), np.zeros(3, "M8[s]"), np.zeros(3, [("a", "i4")])):
        handle = place.share(obj)
        with pytest.raises(shm.UnsupportedError):
            place.resolve(handle, as_="torch")
        place.release(handle)
    handle = place.share(b"raw")
    assert place.resolve(handle, as_="torch").array.tobytes() == b"raw"
    place.release(handle)


def test_without_torch_it_says_what_to_install(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = place.share(np.zeros(3))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(shm.UnsupportedError, match="pip install torch"):
        place.resolve(handle, as_="torch")
    place.release(handle)
