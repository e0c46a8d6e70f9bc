"""Which objects give bytes, and which take them."""

from __future__ import annotations

import array
import ctypes
import mmap
from typing import Any

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import Place

SOURCES = [
    b"abcdefgh",
    bytearray(b"abcdefgh"),
    memoryview(b"abcdefgh"),
    memoryview(bytearray(b"abcdefgh")),
    memoryview(b"a_b_c_d_e_f_g_h_")[::2],
    array.array("H", [0x6261, 0x6463, 0x6665, 0x6867]),
    array.array("d", [8.540883223036124e194]),
    (ctypes.c_char * 8)(*b"abcdefgh"),
    memoryview(b"abcdefgh").cast("I"),
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: type(s).__name__)
def test_buffers_are_written_as_bytes(place: Place, source: Any) -> None:
    expected = bytes(memoryview(source))
    with place.create() as writer, place.attach() as reader:
        writer.write(source)
        assert reader.read() == expected
        writer.write(b"-" * 12)
        writer.write_at(2, source)
        assert reader.read() == b"--" + expected + b"--"


@pytest.mark.parametrize("slots", [1, 2])
def test_large_strided_buffers(place: Place, slots: int) -> None:
    source = memoryview(bytes(range(256)) * 4096)[::2]
    with place.create(size=1 << 20, slots=slots) as writer, place.attach() as reader:
        for _ in range(2):
            writer.write(source)
            assert reader.read() == bytes(source)


@pytest.mark.parametrize("source", ["text", 17, 2.5, None, [1, 2], {"a": 1}, object()])
def test_objects_without_bytes_are_refused(place: Place, source: Any) -> None:
    with place.create() as writer:
        with pytest.raises(TypeError, match="bytes-like"):
            writer.write(source)
        with pytest.raises(TypeError, match="bytes-like"):
            writer.write_at(0, source)
        assert writer.version == 0


TARGETS = [
    lambda: bytearray(8),
    lambda: memoryview(bytearray(8)),
    lambda: array.array("B", bytes(8)),
    lambda: array.array("d", [0.0]),
    ctypes.c_char * 8,
    lambda: np.zeros(8, np.uint8),
    lambda: np.zeros((2, 2), "<f2"),
    lambda: np.zeros(1, "M8[ns]"),
    lambda: np.zeros(1, np.complex64),
    lambda: np.zeros((), ">i8"),
    lambda: np.zeros(8, bool),
    lambda: mmap.mmap(-1, 8),
]


@pytest.mark.parametrize("make", TARGETS)
def test_values_are_read_into_any_writable_buffer(place: Place, make: Any) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"\x01\x00\x01\x00\x01\x00\x01\x00")
        target = make()
        assert reader.read_into(target) == 8
        raw = target.tobytes() if isinstance(target, np.ndarray) else bytes(memoryview(target))
        assert raw == b"\x01\x00\x01\x00\x01\x00\x01\x00"


@pytest.mark.parametrize(
    ("target", "error"),
    [
        (b"12345678", BufferError),
        (memoryview(b"12345678"), BufferError),
        (memoryview(bytearray(16))[::2], BufferError),
        (np.zeros(16, np.uint8)[::2], BufferError),
        (np.zeros((4, 4), np.uint8, order="F").T[::2], BufferError),
        ("12345678", TypeError),
        (None, TypeError),
        (8, TypeError),
    ],
)
def test_what_cannot_take_bytes_is_refused(place: Place, target: Any, error: type) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"12345678")
        with pytest.raises(error):
            reader.read_into(target)


def test_a_read_only_array_is_refused(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"12345678")
        target = np.zeros(8, np.uint8)
        target.flags.writeable = False
        with pytest.raises(BufferError, match="read-only"):
            reader.read_into(target)


def test_a_buffer_is_given_back(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        target = bytearray(b"12345678")
        writer.write(target)
        writer.write_at(0, target)
        reader.read_into(target)
        with pytest.raises(shm.OutOfBoundsError):
            writer.write_at(4096, target)
        target.append(0)  # would raise BufferError while somebody holds it
        small = bytearray(1)
        with pytest.raises(shm.OutOfBoundsError):
            reader.read_into(small)
        small.append(0)
