"""Names, sizes, options and files that are none: the named error, and nothing created."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import snakepit_shm as shm
from conftest import Place

BAD_NAMES = [
    "",
    ".",
    "..",
    ".hidden",
    "a/b",
    "../a",
    "a b",
    "a\0b",
    "ä",
    "x" * 129,
    "\ud800",
    "a\n",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_names_that_break_the_rules(place: Place, name: str) -> None:
    calls = [
        lambda: place.create(name),
        lambda: place.attach(name),
        lambda: place.attach_writer(name),
        lambda: shm.remove(name, **place.where),
        lambda: shm.inspect(name, **place.where),
        lambda: place.share(b"x", name=name),
    ]
    for call in calls:
        with pytest.raises(shm.InvalidNameError) as caught:
            call()
        assert isinstance(caught.value, ValueError)
    assert os.listdir(place.dir) == []


@pytest.mark.parametrize("namespace", ["", "a_b", "../x", "x y", "/", "n" * 129], ids=ascii)
def test_namespaces_that_break_the_rules(place: Place, namespace: str) -> None:
    for call in (
        lambda: shm.create("n", 4096, namespace=namespace, dir=place.dir),
        lambda: shm.attach("n", namespace=namespace, dir=place.dir),
        lambda: shm.list_segments(namespace=namespace, dir=place.dir),
        lambda: shm.cleanup(namespace=namespace, dir=place.dir),
    ):
        with pytest.raises(shm.InvalidNameError):
            call()
    assert os.listdir(place.dir) == []


def test_longest_name_and_all_characters(place: Place) -> None:
    for name in ("x" * 128, "AZaz09._-", "sensor", "sensor_data"):
        with place.create(name) as writer, place.attach(name) as reader:
            writer.write(name.encode())
            assert reader.read() == name.encode()


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        (0, 4096), (1, 4096), (4095, 4096), (4097, 4096), (5000, 4096), ((1 << 30) + 1, 1 << 30),
        (1 << 40, 1 << 30), (sys.maxsize, 1 << 30), (1 << 64, 1 << 30), (-1, 4096),
        (-(1 << 70), 4096),
    ],
)  # fmt: skip
def test_sizes_out_of_range_name_the_nearest(place: Place, size: int, nearest: int) -> None:
    with pytest.raises(shm.InvalidSizeError, match=f"(?s)4096.*{1 << 30}.*{nearest}"):
        place.create(size=size)
    assert os.listdir(place.dir) == []


@pytest.mark.parametrize("size", ["4096", 4096.0, None, b"4096", [4096]], ids=repr)
def test_sizes_of_the_wrong_type(place: Place, size: Any) -> None:
    with pytest.raises(TypeError):
        place.create(size=size)
    assert os.listdir(place.dir) == []


@pytest.mark.parametrize("name", [None, 3, b"it", ["it"]], ids=repr)
def test_names_of_the_wrong_type(place: Place, name: Any) -> None:
    for call in (place.create, place.attach, place.attach_writer):
        with pytest.raises(TypeError):
            call(name)
    assert os.listdir(place.dir) == []


BAD_OPTIONS: list[dict[str, Any]] = [
    {"slots": 0}, {"slots": 65}, {"slots": -1}, {"slots": "4"}, {"slots": 2.0},
    {"max_readers": 0}, {"max_readers": 16_385}, {"max_readers": 2**70},
    {"mode": "fast"}, {"mode": 1}, {"reserve": "now"}, {"integrity": "md5"}, {"integrity": True},
    {"timestamps": "on"}, {"notify": "yes"}, {"notify": 1}, {"lock_memory": "no"},
    {"schema_id": -1}, {"schema_id": 2**64}, {"schema_id": "x"},
    {"permissions": 0o7777}, {"permissions": 0o400}, {"permissions": "rw"},
    {"numa_node": 4095}, {"numa_node": -1}, {"huge_pages": 3}, {"prefault": 3},
]  # fmt: skip


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=repr)
def test_options_out_of_range_are_named(place: Place, options: dict[str, Any]) -> None:
    (option,) = options
    with pytest.raises(shm.InvalidOptionError, match=option) as caught:
        place.create(**options)
    assert isinstance(caught.value, ValueError)
    assert os.listdir(place.dir) == []


def test_options_that_do_not_exist(place: Place) -> None:
    with pytest.raises(TypeError, match="slot"):
        place.create(slot=4)
    for wrong in (3, b"x", object()):
        with pytest.raises(shm.InvalidOptionError, match="namespace"):
            shm.create("n", 4096, namespace=wrong, dir=place.dir)  # type: ignore[arg-type]
        if wrong != b"x":
            with pytest.raises(shm.InvalidOptionError, match="dir"):
                shm.create("n", 4096, dir=wrong)  # type: ignore[arg-type]


def test_permissions_and_schema(place: Place) -> None:
    with place.create(permissions=0o640, schema_id=2**64 - 1) as writer:
        writer.write(b"x")
        assert place.segment_file().stat().st_mode & 0o777 == 0o640
        with place.attach(schema_id=2**64 - 1) as reader:
            assert reader.schema_id == 2**64 - 1
        with pytest.raises(shm.SchemaMismatchError) as caught:
            place.attach(schema_id=7)
        assert isinstance(caught.value, TypeError)


def test_a_name_twice(place: Place) -> None:
    with place.create() as writer:
        with pytest.raises(FileExistsError):
            place.create()
        assert writer.write(b"unharmed") == 2


def test_directories_that_are_none(place: Place) -> None:
    with pytest.raises(shm.ShmError) as caught:
        shm.create("n", 4096, namespace=place.namespace, dir=place.dir / "missing")
    assert isinstance(caught.value, OSError)
    (place.dir / "file").write_bytes(b"x")
    with pytest.raises(shm.ShmError):
        shm.create("n", 4096, namespace=place.namespace, dir=place.dir / "file")
    (place.dir / "file").unlink()


def disguised(place: Place, content: bytes | None, length: int | None = None) -> None:
    """A segment whose file has other content, or another length, than its writer gave it."""
    path = place.segment_file()
    if content is not None:
        with path.open("r+b") as file:
            file.write(content)
    if length is not None:
        os.truncate(path, length)


@pytest.mark.parametrize(
    ("content", "length"),
    [
        (b"\0" * 4096, None),
        (b"\xff" * 4096, None),
        (b"garbage " * 512, None),
        (b"\1", None),
        (None, 0),
        (None, 10),
        (None, 4095),
        (None, 8192),
    ],
)
def test_garbage_and_truncated_files_are_refused(
    place: Place, content: bytes | None, length: int | None
) -> None:
    writer = place.create()
    writer.write(b"x")
    writer.release()
    disguised(place, content, length)
    for call in (place.attach, place.attach_writer):
        with pytest.raises((shm.CorruptedError, shm.TruncatedError)):
            call()
    shm.remove("it", **place.where)
    assert place.files() == []


def test_a_file_of_somebody_else_is_left_alone(place: Place) -> None:
    other = place.dir / f"{place.namespace}_notes.txt"
    other.write_text("mine")
    with place.create("notes.txt"):
        assert [i.name for i in shm.list_segments(**place.where)] == ["notes.txt"]
    assert other.read_text() == "mine"
    other.unlink()


@pytest.mark.parametrize("meta", [b"", b"{", b"null", b"[]", b"\xff" * 100, b"{}" + b" " * 70_000])
def test_metadata_that_is_none(place: Place, meta: bytes) -> None:
    writer = place.create()
    (path,) = (place.dir / f for f in place.files() if f.endswith(".meta"))
    good = path.read_bytes()
    path.write_bytes(meta)
    with pytest.raises(shm.CorruptedError):
        place.attach()
    path.write_bytes(good)
    writer.close()


@given(noise=st.binary(min_size=1, max_size=200), at=st.integers(0, 4095))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_noise_in_the_header_harms_the_interpreter(place: Place, noise: bytes, at: int) -> None:
    with place.create() as writer:
        writer.write(b"value")
        path = place.segment_file()
        whole = path.read_bytes()[:4096]
        with path.open("r+b") as file:
            file.seek(at)
            file.write(noise[: 4096 - at])
        try:
            with place.attach() as reader:
                reader.read()
                reader.numpy()
                reader.info()
                reader.read_into(bytearray(4096))
        except shm.ShmError:
            pass
        # Noise can say that the writer has closed the segment; then its last reader removed it.
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
            file.write(whole)


@given(noise=st.binary(min_size=1, max_size=64), at=st.integers(0, 63))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_noise_in_a_slot_harms_the_interpreter(place: Place, noise: bytes, at: int) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"here is a value with bytes")
        path = place.segment_file()
        slot = path.read_bytes().index(b"here is") - 64
        with path.open("r+b") as file:
            file.seek(slot + at)
            file.write(noise[: 64 - at])
        for look in (reader.read, reader.numpy, reader.info, reader.memoryview):
            with contextlib.suppress(shm.ShmError):
                look()
        writer.write(b"unharmed")
        assert reader.read() == b"unharmed"


@pytest.mark.parametrize("noise", [b"\0" * 200, b"\xff" * 200], ids=["zeros", "ones"])
def test_noise_in_a_sealed_value(place: Place, noise: bytes) -> None:
    handle = place.share(b"here is a value with bytes")
    path: Path = place.segment_file()
    whole = path.read_bytes()
    slot = whole.index(b"here is") - 64
    with path.open("r+b") as file:
        file.seek(slot)
        file.write(noise[:64])
    with pytest.raises(shm.ShmError):
        place.resolve(handle)
    with path.open("r+b") as file:
        file.seek(slot)
        file.write(whole[slot : slot + 64])
    assert bytes(place.resolve(handle)) == b"here is a value with bytes"
    place.release(handle)
