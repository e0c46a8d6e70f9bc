"""Writing and reading values of a live segment, as bytes."""

from __future__ import annotations

import time

import pytest

import snakepit_shm as shm
from conftest import Place


def test_what_is_written_is_read(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        assert writer.write(b"hello") == 2
        assert reader.read() == b"hello"
        assert writer.write(b"x" * 4096) == 4
        assert reader.read() == b"x" * 4096
        assert len(reader) == 4096


def test_versions_are_even_and_tell_what_was_seen(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        assert (writer.version, reader.version, reader.last_version) == (0, 0, 0)
        assert not reader.has_changed()
        writer.write(b"a")
        assert reader.has_changed()
        reader.read()
        assert not reader.has_changed()
        assert reader.last_version == 2
        writer.write(b"b")
        assert reader.has_changed()
        reader.read_into(bytearray(10))
        assert (writer.version, reader.version, reader.last_version) == (4, 4, 4)


def test_nothing_published_yet_is_named(place: Place) -> None:
    with place.create(), place.attach() as reader:
        assert len(reader) == 0
        assert reader
        for call in (reader.read, reader.numpy, reader.memoryview, reader.info):
            with pytest.raises(shm.EmptyError) as caught:
                call()
            assert isinstance(caught.value, LookupError)
        with pytest.raises(shm.EmptyError):
            reader.read_into(bytearray(4096))


def test_a_segment_that_ended_without_a_value_says_so(place: Place) -> None:
    writer = place.create()
    with place.attach() as reader:
        writer.close()
        assert len(reader) == 0
        with pytest.raises(shm.ClosedError):
            reader.read()


def test_read_into_fills_the_start_and_leaves_the_rest(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"12345")
        buffer = bytearray(b"........")
        assert reader.read_into(buffer) == 5
        assert buffer == b"12345..."
        assert reader.read_into(memoryview(buffer)[3:]) == 5
        assert buffer == b"12312345"


def test_read_into_a_buffer_that_is_too_short_changes_nothing(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"12345")
        buffer = bytearray(4)
        with pytest.raises(shm.OutOfBoundsError, match="5 bytes") as caught:
            reader.read_into(buffer)
        assert buffer == bytes(4)
        assert isinstance(caught.value, IndexError)
        assert isinstance(caught.value, ValueError)


def test_ranges(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"0123456789")
        assert reader.read_range(3, 4) == b"3456"
        assert reader.read_range(0, 10) == b"0123456789"
        for offset, length in [(8, 3), (11, 1), (0, 11), (2**63, 2**63), (2**64 - 1, 2)]:
            with pytest.raises((shm.OutOfBoundsError, OverflowError)):
                reader.read_range(offset, length)
        with pytest.raises(OverflowError):
            reader.read_range(-1, 2)


def test_patches_build_on_the_previous_value(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"0123456789")
        assert writer.write_at(4, b"__") == 4
        assert reader.read() == b"0123__6789"
        writer.write_at(0, bytearray(b"ab"))
        writer.write_at(8, memoryview(b"yz"))
        assert reader.read() == b"ab23__67yz"
        writer.write_at(12, b"!")
        assert reader.read() == b"ab23__67yz\0\0!"


@pytest.mark.parametrize("data", [b"", b"x" * 4097, bytearray(4097), memoryview(b"x" * 5000)])
def test_empty_and_over_long_values_are_refused(place: Place, data: bytes) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"before")
        with pytest.raises(shm.OutOfBoundsError):
            writer.write(data)
        assert reader.read() == b"before"
        assert writer.version == 2


@pytest.mark.parametrize(
    ("offset", "data"),
    [(4096, b"x"), (4095, b"xy"), (2**63 - 1, b"x"), (2**64 - 2, b"xx"), (0, b"")],
)
def test_patches_out_of_bounds_are_refused(place: Place, offset: int, data: bytes) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"before")
        for patch in (data, bytearray(data)):
            with pytest.raises(shm.OutOfBoundsError):
                writer.write_at(offset, patch)
        assert reader.read() == b"before"


def test_info_describes_the_value(place: Place) -> None:
    with place.create(timestamps="precise") as writer, place.attach() as reader:
        before = time.monotonic_ns()
        writer.write(b"12345678", dtype="<f4", shape=2)
        info = reader.info()
        assert before <= info.timestamp_ns <= time.monotonic_ns()
        assert info[:2] == (2, 8)
        assert info[3:] == ("numpy", "<f4", (2,))


def test_age_grows_and_max_age_refuses(place: Place) -> None:
    with place.create(timestamps="precise") as writer, place.attach() as reader:
        writer.write(b"x")
        first = reader.age()
        time.sleep(0.01)
        assert reader.age() > first >= 0
        assert reader.read(max_age=3600) == b"x"
        with pytest.raises(shm.StaleError):
            reader.read(max_age=0.001)
        assert reader.read() == b"x"


@pytest.mark.parametrize("seconds", [-1, float("nan"), -0.001])
def test_times_that_are_none_are_refused(place: Place, seconds: float) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"x")
        with pytest.raises(shm.InvalidOptionError):
            reader.read(max_age=seconds)
        with pytest.raises(shm.InvalidOptionError):
            reader.wait(timeout=seconds)


def test_without_timestamps_there_is_no_age(place: Place) -> None:
    with place.create(timestamps="off") as writer, place.attach() as reader:
        writer.write(b"x")
        assert reader.info().timestamp_ns == 0
        with pytest.raises(shm.UnsupportedError):
            reader.age()


@pytest.mark.parametrize("slots", [1, 2, 4, 64])
@pytest.mark.parametrize("integrity", ["none", "crc32c"])
def test_every_number_of_slots_keeps_values_whole(place: Place, slots: int, integrity: str) -> None:
    with (
        place.create(slots=slots, integrity=integrity) as writer,
        place.attach() as reader,
    ):
        for i in range(3 * slots):
            value = bytes([i % 256]) * (i + 1)
            for kind in (bytes, bytearray, lambda v: memoryview(bytes(v))):
                writer.write(kind(value))
                assert reader.read() == value


def test_a_damaged_value_is_never_returned(place: Place) -> None:
    with place.create(integrity="crc32c") as writer, place.attach() as reader:
        writer.write(b"precious")
        path = place.segment_file()
        raw = path.read_bytes()
        at = raw.index(b"precious")
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"P")
        with pytest.raises(shm.CorruptedError) as caught:
            reader.read()
        assert isinstance(caught.value, OSError)
        with pytest.raises(shm.CorruptedError):
            reader.numpy()


def test_sealed_values_are_final(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        with pytest.raises(shm.EmptyError):
            writer.seal()
        writer.write(b"last words")
        assert not reader.is_sealed
        writer.seal()
        assert reader.is_sealed
        for call in (
            lambda: writer.write(b"x"),
            lambda: writer.write_at(0, b"x"),
            lambda: writer.loan(1).__enter__(),
        ):
            with pytest.raises(shm.SealedError):
                call()
        assert reader.read() == b"last words"
        assert reader.last_version == 2
        buffer = bytearray(10)
        assert reader.read_into(buffer) == 10
        assert buffer == b"last words"


def test_large_values_take_the_path_without_the_gil(place: Place) -> None:
    size = 4 << 20
    value = bytes(range(256)) * (size // 256)
    with place.create(size=size) as writer, place.attach() as reader:
        for data in (value, bytearray(value), memoryview(value)):
            writer.write(data)
            assert reader.read() == value
            assert reader.read_range(size - 300, 300) == value[-300:]
            assert reader.numpy().tobytes() == value
        writer.write_at(10, b"!" * (1 << 20))
        assert reader.read() == value[:10] + b"!" * (1 << 20) + value[10 + (1 << 20) :]
