"""Arrays in and out: dtypes, shapes, views in place, copies."""

from __future__ import annotations

import datetime as dt
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import snakepit_shm as shm
from conftest import Place

PLAIN_DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.datetime64_dtypes(max_period="Y", min_period="ns"),
    hnp.timedelta64_dtypes(max_period="D", min_period="ns"),
    hnp.byte_string_dtypes(min_len=1, max_len=9),
    hnp.unicode_string_dtypes(min_len=1, max_len=9),
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    dtype = draw(PLAIN_DTYPES)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=6, max_side=4))
    raw = draw(st.binary(min_size=1, max_size=64))
    if dtype.kind in "biufcmM":
        size = dtype.itemsize * int(np.prod(shape))
        filled = (raw * (size // len(raw) + 1))[:size]
        if dtype.kind == "b":
            filled = bytes(b & 1 for b in filled)
        array = np.frombuffer(filled, dtype).reshape(shape)
    else:
        array = np.full(shape, draw(st.text("abcxyzé", max_size=9)).encode("latin1"), "S9")
        array = np.char.decode(array, "latin1").astype("U9") if dtype.kind == "U" else array
        array = array.astype(dtype)
    layout = draw(st.sampled_from(["C", "F", "reversed"]))
    if layout == "F":
        return np.asfortranarray(array)
    return array[::-1] if layout == "reversed" and array.ndim else array


def same(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert got.tobytes() == np.ascontiguousarray(wanted).tobytes()


@given(array=arrays())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_arrays_survive_the_way_through_a_live_segment(
    place: Place, array: np.ndarray[Any, Any]
) -> None:
    with (
        place.create(size=shm.round_up_capacity(array.nbytes)) as writer,
        place.attach() as reader,
    ):
        writer.write(array)
        got = reader.numpy()
        same(got, array)
        assert got.flags.writeable
        assert got.flags.c_contiguous


@given(array=arrays())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_arrays_survive_the_way_through_a_handle(place: Place, array: np.ndarray[Any, Any]) -> None:
    handle = place.share(array)
    got = place.resolve(handle)
    same(got, array)
    assert not got.flags.writeable
    place.release(handle)


@given(array=arrays())
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_arrays_survive_a_segment_with_one_slot(place: Place, array: np.ndarray[Any, Any]) -> None:
    with (
        place.create(size=shm.round_up_capacity(array.nbytes), slots=1) as writer,
        place.attach() as reader,
    ):
        for _ in range(2):
            writer.write(array)
            same(reader.numpy(), array)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("slots", [1, 2])
def test_large_arrays_of_any_layout(place: Place, order: str, slots: int) -> None:
    array = np.asarray(np.random.default_rng(7).random((300, 200, 10)), order=order)[::2]
    with place.create(size=8 << 20, slots=slots) as writer, place.attach() as reader:
        for _ in range(3):
            writer.write(array)
            same(reader.numpy(), array)
            array = array + 1


def test_scalars_are_arrays_without_dimensions(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(np.float32(2.5))
        assert reader.numpy().shape == ()
        assert reader.numpy()[()] == np.float32(2.5)


def test_a_live_value_is_a_copy_of_its_own(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(np.arange(4))
        first = reader.numpy()
        writer.write(np.arange(4) * 10)
        assert first.tolist() == [0, 1, 2, 3]
        first[0] = 99
        assert reader.numpy().tolist() == [0, 10, 20, 30]


def test_a_large_live_value_is_a_copy_of_its_own(place: Place) -> None:
    with place.create(size=1 << 20) as writer, place.attach() as reader:
        writer.write(np.zeros(1 << 17))
        first = reader.numpy()
        writer.write(np.ones(1 << 17))
        first[0] = 99
        assert first.sum() == 99
        assert reader.numpy().sum() == 1 << 17
    assert first.sum() == 99  # it outlives the reader


def test_a_sealed_value_is_in_place(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(np.arange(12, dtype="<i4").reshape(3, 4))
        writer.seal()
        one, two = reader.numpy(), reader.numpy()
        assert np.shares_memory(one, two)
        assert one is not two
        assert one.ctypes.data % 64 == 0
        assert not one.flags.writeable
        assert not one.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            one[0, 0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            one.flags.writeable = True
        view = reader.memoryview()
        assert view.readonly
        assert view.format == "B"
        assert view.nbytes == 48
        assert np.shares_memory(np.frombuffer(view, np.uint8), one)
        mine = writer.numpy()
        assert mine.tolist() == one.tolist()
        assert writer.memoryview() == view
        del one, two, view, mine


def test_the_writer_has_no_array_before_the_seal(place: Place) -> None:
    with place.create() as writer:
        writer.write(b"x")
        for call in (writer.numpy, writer.memoryview, writer.handle):
            with pytest.raises(shm.NotSealedError):
                call()


def test_plain_bytes_are_uint8(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"abc")
        assert reader.numpy().dtype == np.uint8
        assert reader.numpy().tolist() == [97, 98, 99]
        assert bytes(reader.memoryview()) == b"abc"
        writer.write(b"\x01\x00\x02\x00", dtype=np.int16, shape=(2, 1))
        assert reader.numpy().tolist() == [[1], [2]]


def test_patching_keeps_dtype_and_shape(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(np.zeros((2, 2), np.int32))
        writer.write_at(4, np.array([7], np.int32))
        writer.write_at(12, np.array([8], np.int32)[::-1])
        assert reader.numpy().tolist() == [[0, 7], [0, 8]]


def test_asarray_and_dlpack(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(np.arange(6.0).reshape(2, 3))
        assert np.asarray(reader).tolist() == [[0, 1, 2], [3, 4, 5]]
        assert np.asarray(reader, dtype="i4").dtype == np.int32
        assert reader.__dlpack_device__() == (1, 0)
        live = np.from_dlpack(reader)
        assert live.tolist() == [[0, 1, 2], [3, 4, 5]]
        writer.seal()
        sealed = np.from_dlpack(reader)
        assert np.shares_memory(sealed, reader.numpy())
        assert not sealed.flags.writeable
        copied = np.array(reader)
        assert not np.shares_memory(copied, sealed)
        del sealed


def bad_arrays() -> list[Any]:
    return [
        np.array([object()]),
        np.array([None, "x"], dtype=object),
        np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]),
        np.zeros(2, dtype="V4"),
    ]


@pytest.mark.parametrize("array", bad_arrays(), ids=lambda a: str(a.dtype))
def test_dtypes_that_are_no_plain_bytes_are_refused(place: Place, array: Any) -> None:
    with place.create() as writer:
        with pytest.raises(shm.UnsupportedError, match="convert the array") as caught:
            writer.write(array)
        assert isinstance(caught.value, TypeError)
        assert writer.version == 0
    if array.dtype.hasobject:
        with pytest.raises(shm.UnsupportedError):
            place.share(array)
    assert place.files() == []


@pytest.mark.parametrize(
    "array",
    [np.zeros((1,) * 7), np.zeros(3, "M8[1000000000ns]")],
    ids=["seven dimensions", "dtype of many characters"],
)
def test_what_no_descriptor_holds_is_refused(place: Place, array: Any) -> None:
    with place.create() as writer:
        with pytest.raises((shm.UnsupportedError, shm.InvalidOptionError)):
            writer.write(array)
        assert writer.version == 0


def test_half_a_description_is_refused(place: Place) -> None:
    with place.create() as writer:
        with pytest.raises(shm.InvalidOptionError, match="both dtype and shape"):
            writer.write(b"1234", dtype="f4")
        with pytest.raises(shm.InvalidOptionError):
            writer.write(b"1234", dtype="f4", shape=2)
        for shape in ("12", -1, [1, -1], 1.5, object()):
            with pytest.raises(shm.InvalidOptionError, match="shape"):
                writer.write(b"1234", dtype="f4", shape=shape)
        with pytest.raises(TypeError):
            writer.write(b"1234", dtype="no such type", shape=1)


def test_masked_arrays_are_not_shared_without_their_mask(place: Place) -> None:
    with pytest.raises(shm.UnsupportedError, match="filled"):
        place.share(np.ma.masked_array([1, 2], [True, False]))


@pytest.mark.parametrize("dtype", ["|O8", "f4,f4", "<f3", "|V9", "\xff\xfe", "<U-1", "<M8[xx]"])
def test_a_hostile_dtype_in_shared_memory_is_refused(place: Place, dtype: str) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(np.arange(4, dtype="<u8"))
        path = place.segment_file()
        raw = path.read_bytes()
        at = raw.index(b"<u8\0\0\0\0\0")
        with path.open("r+b") as file:
            file.seek(at)
            file.write(dtype.encode("latin1")[:8].ljust(8, b"\0"))
        with pytest.raises(shm.CorruptedError):
            reader.numpy()


def test_dates_keep_their_unit(place: Place) -> None:
    moment = np.array(["2024-02-29T12:00:00.000000001"], "M8[ns]")
    handle = place.share(moment)
    got = place.resolve(handle)
    assert got.dtype == np.dtype("M8[ns]")
    assert got[0].astype("M8[s]").item() == dt.datetime(2024, 2, 29, 12)
    place.release(handle)


def test_a_live_value_without_a_byte(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer._write_nothing(dtype="<f4", shape=(0, 3))
        assert reader.numpy().shape == (0, 3)
        assert reader.read() == b""
        assert reader.info().shape == (0, 3)
        with reader.pin() as pin:
            assert pin.numpy().shape == (0, 3)
        writer._write_nothing()
        assert reader.read() == b""
        assert reader.numpy().shape == (0,)
        with pytest.raises(shm.OutOfBoundsError):
            writer.write(b"")
        writer.write_at(2, b"x")
        assert reader.read() == b"\0\0x"
