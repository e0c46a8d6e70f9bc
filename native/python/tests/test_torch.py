"""Tensors of torch: each dtype and layout there and back, in place where that is promised.

`make test-torch` runs this with Debian's torch. Where torch is not installed, pytest leaves it out.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import snakepit_shm as shm
from conftest import FEW_FAULTS, PATIENCE, Place, faults, place_of

DTYPES = {
    "float64": ("<f8", None),
    "float32": ("<f4", None),
    "float16": ("<f2", None),
    "bfloat16": ("|V2", "bfloat16"),
    "int8": ("|i1", None),
    "int16": ("<i2", None),
    "int32": ("<i4", None),
    "int64": ("<i8", None),
    "uint8": ("|u1", None),
    "bool": ("|b1", None),
    "complex64": ("<c8", None),
    "complex128": ("<c16", None),
}
"""Of torch: what handles call it."""

NEWER_DTYPES = {
    "uint16": ("<u2", None),
    "uint32": ("<u4", None),
    "uint64": ("<u8", None),
    "float8_e4m3fn": ("|V1", "float8_e4m3fn"),
    "float8_e5m2": ("|V1", "float8_e5m2"),
}
"""That torch has from 2.1 or 2.3 on."""

SHAPES = [(), (5,), (2, 3, 4), (0,), (3, 0, 2), (1, 2, 1, 2, 1, 2)]

LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as it is": lambda t: t,
    "transposed": lambda t: t.permute(*range(t.ndim - 1, -1, -1)) if t.ndim else t,
    "channels last": lambda t: t.transpose(0, -1) if t.ndim else t,
    "every other": lambda t: t.repeat(2, *[1] * (t.ndim - 1))[::2] if t.ndim else t,
    "a part": lambda t: torch.cat([t, t], -1)[..., t.shape[-1] :] if t.ndim else t,
    "expanded": lambda t: t[:1].expand(3, *t.shape[1:]) if t.ndim and t.shape[0] else t,
}

NUMBERS = 1 << 22
"""32 MiB of doubles: 8,192 pages."""


def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Small numbers, each another; in complex ones with another imaginary part."""
    numbers = torch.arange(int(np.prod(shape)), dtype=torch.float64).reshape(shape)
    dtype = getattr(torch, name)
    if dtype.is_complex:
        return torch.complex(numbers, -numbers).to(dtype)
    return (numbers % 2 == 1) if name == "bool" else numbers.to(dtype)


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Dtype, shape and every bit."""
    return (one.dtype, one.shape) == (two.dtype, two.shape) and octets(one) == octets(two)


def octets(tensor: torch.Tensor) -> bytes:
    """Its elements in C order."""
    flat = tensor.reshape(-1).clone(memory_format=torch.contiguous_format)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


@pytest.mark.parametrize("name", [*DTYPES, *NEWER_DTYPES])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tensors_come_back(place: Place, name: str, shape: tuple[int, ...]) -> None:
    if not hasattr(torch, name):
        what_this_torch_has_not(place, name)
        return
    for layout, lay in LAYOUTS.items():
        given = lay(tensor(name, shape))
        handle = place.share(given)
        assert (handle["dtype"], handle.get("element")) == {**DTYPES, **NEWER_DTYPES}[name]
        assert handle["shape"] == list(given.shape)
        own = place.resolve(json.dumps(handle), as_="torch")
        assert same(own, given), layout
        own.zero_()  # a tensor can be written to, and this one is a copy
        in_place = place.resolve(handle, as_="torch", copy=False)
        assert same(in_place, given), layout
        if given.numel():
            assert in_place.data_ptr() == place_of(place, handle).start
            assert in_place.is_contiguous() or in_place.stride() == given.stride(), layout
            assert layout != "transposed" or in_place.stride() == given.stride(), "as it lay"
        del in_place
        place.release(handle)


def what_this_torch_has_not(place: Place, name: str) -> None:
    """An array of such elements is refused by name; nothing else becomes of it."""
    dtype, element = NEWER_DTYPES[name]
    handle = place.share(np.zeros(3, dtype))
    extended = handle if element is None else {**handle, "element": element}
    with pytest.raises(shm.UnsupportedError, match=f"holds an array.*torch has no dtype '{name}'"):
        place.resolve(extended, as_="torch")
    place.release(handle)


def test_what_numpy_shares_torch_resolves_and_the_other_way(place: Place) -> None:
    array = np.arange(24, dtype="f4").reshape(2, 3, 4)
    handle = place.share(array)
    assert place.resolve(handle, as_="torch").tolist() == array.tolist()
    place.release(handle)
    handle = place.share(torch.from_numpy(array))
    got = place.resolve(handle)
    assert got.dtype == array.dtype
    assert got.tolist() == array.tolist()
    place.release(handle)
    handle = place.share(b"raw")
    assert bytes(place.resolve(handle, as_="torch").tolist()) == b"raw"
    place.release(handle)


def test_what_is_only_marked_conjugate_or_negative(place: Place) -> None:
    """Lazy bits of torch's, which the memory knows nothing of."""
    plain = torch.tensor([1 + 2j, 3 - 4j])
    for marked in (plain.conj(), plain.conj().imag):
        assert marked.is_conj() or marked.is_neg()
        handle = place.share(marked)
        assert place.resolve(handle, as_="torch").tolist() == marked.tolist()
        place.release(handle)


@pytest.mark.filterwarnings("ignore:.*(beta state|experimental)")
@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda: torch.ones(3, requires_grad=True), "detach"),
        (lambda: torch.nn.Parameter(torch.ones(3)), "detach"),
        (lambda: torch.eye(3).to_sparse(), "to_dense"),
        (lambda: torch.eye(3).to_sparse_csr(), "to_dense"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8), "dequantize"),
        (lambda: torch.empty(3, device="meta"), "device 'meta'.*cpu"),
        (lambda: torch.zeros(3, dtype=torch.complex32), "to.dtype"),
        (lambda: torch.zeros([1] * 7), "reshape"),
    ],
)
def test_tensors_that_cannot_be_shared_say_what_to_do(
    place: Place, make: Callable[[], torch.Tensor], remedy: str
) -> None:
    with pytest.raises(shm.UnsupportedError, match=remedy):
        place.share(make())
    assert place.files() == []


@pytest.mark.parametrize(
    "obj", [np.zeros(3, ">f4"), np.zeros(3, "M8[s]"), np.zeros(3, [("a", "i4")])], ids=repr
)
def test_values_that_are_no_tensors(place: Place, obj: Any) -> None:
    handle = place.share(obj)
    with pytest.raises(shm.UnsupportedError):
        place.resolve(handle, as_="torch")
    place.release(handle)


def test_a_resolved_tensor_lies_in_the_segment(place: Place) -> None:
    given = torch.arange(NUMBERS, dtype=torch.float64)
    handle = place.share(given)
    place.resolve(handle, as_="torch", copy=False)  # the mapping is there
    before, stats = faults(), shm.copy_stats()
    got = place.resolve(handle, as_="torch", copy=False)
    assert faults() - before < FEW_FAULTS, "nothing was read and nothing written"
    assert shm.copy_stats().resolved_in_place == stats.resolved_in_place + 1
    assert got.data_ptr() == place_of(place, handle).start
    assert torch.equal(got, given)
    own = place.resolve(handle, as_="torch")
    assert own.data_ptr() not in place_of(place, handle)
    assert shm.copy_stats().resolved_copied == stats.resolved_copied + 1
    place.release(handle)
    assert torch.equal(got, given), "it stays mapped while somebody looks at it"


def test_a_tensor_that_fills_shared_memory_is_not_copied(place: Place) -> None:
    """`empty` under a tensor: what torch computed there is shared where it lies."""
    array = shm.empty(NUMBERS, "f8", **place.where)
    address = array.ctypes.data
    torch.arange(NUMBERS, dtype=torch.float64, out=torch.from_numpy(array))
    before, stats = faults(), shm.copy_stats()
    handle = place.share(array, copy=False)
    assert faults() - before < FEW_FAULTS
    got = place.resolve(handle, as_="torch", copy=False)
    assert faults() - before < FEW_FAULTS
    assert shm.copy_stats().shared_in_place == stats.shared_in_place + 1
    assert address == array.ctypes.data
    assert got[-1] == NUMBERS - 1
    del got, array
    place.release(handle)


ECHO = """
import json, resource, sys, snakepit_shm as shm
{imports}
def faults(): return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
shm.release(shm.share(b"everything is loaded"))
for line in sys.stdin:
    before = faults()
    value = shm.resolve(line, as_={form!r}, copy=False)
    faulted = faults() - before
    again = {again}
    print(json.dumps([shm.share(again, transfer=True), faulted]), flush=True)
    del value
"""


@pytest.mark.parametrize("other", ["torch", "numpy"])
def test_a_tensor_goes_to_another_process_and_back(place: Place, other: str) -> None:
    """A worker that has torch, too; one that has numpy and ml_dtypes."""
    script = {
        "torch": ECHO.format(imports="import torch", form="torch", again="value.flip(0)"),
        "numpy": ECHO.format(imports="", form="numpy", again="value[::-1]"),
    }[other]
    numpys = os.environ.get("SNAKEPIT_TEST_NUMPY_PYTHON", sys.executable)
    names = ("float32", "bfloat16", "bool", "complex128")
    given = [tensor(name, (NUMBERS // 4,)).reshape(-1, 2) for name in names]
    handles = [place.share(one) for one in given]
    process = place.start(script, python=sys.executable if other == "torch" else numpys)
    lines = "".join(json.dumps(handle) + "\n" for handle in handles)
    out, err = process.communicate(lines, timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    for line, sent in zip(out.splitlines(), given, strict=True):
        again, faulted = json.loads(line)
        assert faulted < FEW_FAULTS, f"of {sent.numel() * sent.element_size() // 4096} pages"
        got = place.resolve(again, as_="torch", copy=False)
        assert got.dtype == sent.dtype
        assert torch.equal(got, sent.flip(0))
        del got
        place.release(again)
    for handle in handles:
        place.release(handle)
