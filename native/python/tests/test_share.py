"""`share`, `resolve`, `release`: kinds of objects, owners, handles that are refused."""

from __future__ import annotations

import array
import copy
import gc
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import Place, until


@pytest.mark.parametrize(
    "obj", [b"some bytes", bytearray(b"some bytes"), memoryview(b"some bytes")], ids=repr
)
def test_bytes_come_back_as_a_read_only_memoryview(place: Place, obj: Any) -> None:
    handle = place.share(obj)
    view = place.resolve(handle)
    assert isinstance(view, memoryview)
    assert view.readonly
    assert view == b"some bytes"
    place.release(handle)


def test_the_handle_is_the_one_of_the_design(place: Place) -> None:
    handle = place.share(np.ones((2, 3), np.float32))
    assert json.loads(json.dumps(handle)) == handle
    assert set(handle) == {
        "__snakepit_shm__", "name", "namespace", "version", "generation", "bytes", "dtype",
        "shape", "format", "token",
    }  # fmt: skip
    assert handle["__snakepit_shm__"] == 1
    assert handle["namespace"] == place.namespace
    assert (handle["version"], handle["generation"], handle["bytes"]) == (2, 1, 24)
    assert (handle["dtype"], handle["shape"], handle["format"]) == ("<f4", [2, 3], "numpy")
    place.release(handle)


def test_a_handle_works_as_json_text(place: Place) -> None:
    handle = place.share(np.arange(3))
    text = json.dumps(handle)
    assert place.resolve(text).tolist() == [0, 1, 2]
    place.release(text)
    assert place.files() == []


def test_other_buffers_and_dlpack(place: Place) -> None:
    class Exporter:
        def __init__(self) -> None:
            self.array = np.arange(4.0)

        def __dlpack__(self, **keywords: Any) -> Any:
            return self.array.__dlpack__(**keywords)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.array.__dlpack_device__()

    handles = [place.share(array.array("d", [1.0, 2.0])), place.share(Exporter())]
    assert place.resolve(handles[0]).tobytes() == np.array([1.0, 2.0]).tobytes()
    assert place.resolve(handles[1]).tolist() == [0, 1, 2, 3]
    for handle in handles:
        place.release(handle)


@pytest.mark.parametrize(
    "obj", ["text", 3, None, [1], {}, object(), {1, 2}, np.ndarray, bytes], ids=repr
)
def test_other_objects_are_refused(place: Place, obj: Any) -> None:
    with pytest.raises(shm.UnsupportedError, match="cannot be shared") as caught:
        place.share(obj)
    assert isinstance(caught.value, TypeError)
    assert place.files() == []


@pytest.mark.parametrize("obj", [b"", bytearray(), np.zeros((3, 0)), memoryview(b"")], ids=repr)
def test_nothing_is_shared_as_nothing(place: Place, obj: Any) -> None:
    handle = place.share(obj)
    assert handle["bytes"] == 0
    got = place.resolve(json.dumps(handle))
    assert len(bytes(got)) == 0
    assert (
        np.asarray(got).shape == np.asarray(obj if isinstance(obj, np.ndarray) else [0][:0]).shape
    )
    with place.attach(handle["name"]) as reader:
        assert len(reader.memoryview()) == 0
        assert reader.read() == b""
        assert reader.read_into(bytearray(8)) == 0
        assert reader.numpy().size == 0
        assert reader.info().nbytes == 0
    del got
    place.release(handle)
    assert place.files() == []


def test_more_than_a_gigabyte_is_refused(place: Place) -> None:
    huge = np.broadcast_to(np.uint8(1), ((1 << 30) + 1,))
    with pytest.raises(shm.InvalidSizeError, match="1073741824"):
        place.share(huge)
    assert place.files() == []


def test_a_name_of_ones_own(place: Place) -> None:
    handle = place.share(b"x", name="mine", module="vision")
    assert handle["name"] == "mine"
    with pytest.raises(shm.AlreadyExistsError):
        place.share(b"y", name="mine")
    assert bytes(place.resolve(handle)) == b"x"
    place.release(handle)


def test_release_removes_and_a_second_one_says_so(place: Place) -> None:
    handle = place.share(b"x")
    place.release(handle)
    assert place.files() == []
    with pytest.raises(shm.NotFoundError):
        place.release(handle)
    with pytest.raises(shm.NotFoundError):
        place.resolve(handle)


def test_what_was_resolved_outlives_the_release(place: Place) -> None:
    handle = place.share(np.arange(1000))
    resolved = place.resolve(handle)
    part = resolved[10:20]
    place.release(handle)
    assert place.files() == []
    del resolved
    gc.collect()
    assert part.tolist() == list(range(10, 20))


def test_a_transferred_value_belongs_to_whoever_has_the_handle(place: Place) -> None:
    out = place.run(
        """
        import json, snakepit_shm
        print(json.dumps(snakepit_shm.share(b"result", transfer=True)))
        """
    )
    assert bytes(place.resolve(out)) == b"result"
    place.release(out)
    assert place.files() == []


def test_a_transferred_value_that_nobody_takes_goes_after_its_ttl(place: Place) -> None:
    out = place.run(
        """
        import json, snakepit_shm
        long = snakepit_shm.share(b"long", transfer=True)
        short = snakepit_shm.share(b"short", transfer=True, ttl=0.001)
        print(json.dumps([long, short]))
        """
    )
    long, short = json.loads(out)

    def only_one_left() -> bool:
        shm.cleanup(**place.where, grace=3600.0)
        return [item.name for item in shm.list_segments(**place.where)] == [long["name"]]

    until(only_one_left)
    with pytest.raises(shm.NotFoundError):
        place.resolve(short)
    assert bytes(place.resolve(long)) == b"long"
    # No grace takes what still has its time.
    shm.cleanup(**place.where, grace=0.0)
    place.release(long)
    assert place.files() == []


@pytest.mark.parametrize("ttl", [0, -1.0, float("nan"), float("inf"), 8 * 24 * 3600.0])
def test_a_ttl_that_is_none_is_refused_and_leaves_nothing(place: Place, ttl: float) -> None:
    with pytest.raises(shm.InvalidOptionError):
        place.share(b"x", transfer=True, ttl=ttl)
    assert place.files() == []


@pytest.mark.parametrize("copy", ["never", [], 2])
def test_a_copy_that_is_none_is_refused(place: Place, copy: Any) -> None:
    with pytest.raises(shm.InvalidOptionError, match="copy"):
        place.share(b"x", copy=copy)
    assert place.files() == []


def test_who_gives_a_segment_away_may_go_on_looking(place: Place) -> None:
    writer = place.create(slots=1)
    with pytest.raises(shm.NotSealedError):
        writer.give_away(60)
    with writer.loan((512,), "f8") as array:
        array[:] = 1.5
    writer.seal()
    handle = writer.handle()
    writer.give_away(60.0)
    assert array.sum() == 768.0
    del array
    writer.close()
    assert place.resolve(handle).sum() == 768.0
    place.release(handle)
    assert place.files() == []


def test_what_is_not_released_goes_with_the_interpreter(place: Place) -> None:
    out = place.run(
        """
        import json, snakepit_shm
        handle = snakepit_shm.share(b"x")
        view = snakepit_shm.resolve(handle)
        print(json.dumps(handle))
        """
    )
    assert place.files() == []
    with pytest.raises(shm.NotFoundError):
        place.resolve(out)


def test_a_handle_released_by_another_process_is_gone(place: Place) -> None:
    handle = place.share(b"x" * 10_000)
    place.run(
        "import sys, snakepit_shm; snakepit_shm.release(sys.argv[1])",
        json.dumps(handle),
    )
    assert place.files() == []
    place.release(handle)  # what this process still held of it goes quietly


def test_memory_that_others_released_is_let_go(place: Place) -> None:
    """A worker whose results are released elsewhere does not grow for ever."""

    def held() -> int:
        return Path("/proc/self/maps").read_text().count(f"{place.dir}/")

    for _ in range(30):
        handle = place.share(b"x" * 100_000)
        shm._native.remove_handle(json.dumps(handle), place.dir)  # as another process would
    until(lambda: held() <= 3 * 6, "few mappings")
    kept = [place.share(b"y") for _ in range(5)]
    assert [bytes(place.resolve(h)) for h in kept] == [b"y"] * 5
    for handle in kept:
        place.release(handle)
    while shm._share._shared:
        shm._share._drop_removed()


def test_the_environment_names_the_place(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNAKEPIT_SHM_NAMESPACE", place.namespace)
    monkeypatch.setenv("SNAKEPIT_SHM_DIR", str(place.dir))
    handle = shm.share(b"x")
    assert len(place.files()) == 2
    assert handle["namespace"] == place.namespace
    assert bytes(shm.resolve(handle)) == b"x"
    (found,) = shm.list_segments()
    assert found.name == handle["name"]
    with shm.attach(handle["name"]) as reader:
        assert reader.read() == b"x"
    shm.release(handle)


def test_another_environment_or_working_directory_later_changes_nothing(place: Place) -> None:
    with tempfile.TemporaryDirectory(dir=place.dir.parent) as elsewhere:
        out = place.run(
            """
            import os, sys, snakepit_shm
            before = os.environ["SNAKEPIT_SHM_DIR"]
            os.chdir(before)
            kept = [snakepit_shm.share(b"first"), snakepit_shm.share(b"second", dir=".")]
            array = snakepit_shm.empty(10)
            os.chdir("/")
            os.environ["SNAKEPIT_SHM_DIR"] = sys.argv[1]
            os.environ["SNAKEPIT_SHM_NAMESPACE"] = "another"
            for _ in range(4):  # each looks whether somebody has removed older ones
                snakepit_shm.release(snakepit_shm.share(b"other"))
            print(*(bytes(snakepit_shm.resolve(handle, dir=before)).decode() for handle in kept))
            """,
            elsewhere,
        )
        assert out == "first second\n"
        assert os.listdir(elsewhere) == []
    assert place.files() == []  # the array too


def test_an_older_handle_of_the_same_name_is_refused(place: Place) -> None:
    old = place.share(b"old", name="it")
    place.release(old)
    new = place.share(b"new", name="it")
    for call in (place.resolve, place.release):
        with pytest.raises(shm.ShmError) as caught:
            call(old)
        assert caught.value.code in {"invalid_handle", "not_found"}
    assert bytes(place.resolve(new)) == b"new"
    place.release(new)


HOSTILE: list[tuple[str, Any]] = [
    ("__snakepit_shm__", 2),
    ("__snakepit_shm__", True),
    ("name", "../../etc/passwd"),
    ("name", ""),
    ("name", 7),
    ("name", "x" * 129),
    ("name", "nul\0"),
    ("namespace", "other_one"),
    ("namespace", "/"),
    ("namespace", None),
    ("version", 4),
    ("version", 3),
    ("version", -2),
    ("version", 2.0),
    ("version", 2**64),
    ("generation", 7),
    ("generation", "1"),
    ("bytes", 0),
    ("order", "F"),
    ("order", "K"),
    ("order", None),
    ("order", ["F"]),
    ("element", ""),
    ("element", "bfloat16"),
    ("element", "x" * 5000),
    ("element", {"names": []}),
    ("bytes", 23),
    ("bytes", 2**63),
    ("bytes", "24"),
    ("dtype", "<f8"),
    ("dtype", "|O8"),
    ("dtype", "O"),
    ("dtype", "f4,f4"),
    ("dtype", None),
    ("shape", [3, 2]),
    ("shape", [24]),
    ("shape", [-2, -3]),
    ("shape", [2**32, 2**32]),
    ("shape", 6),
    ("shape", [2, 3.0]),
    ("shape", [1] * 7),
    ("format", "raw"),
    ("format", "pickle"),
    ("format", 1),
    ("token", "0" * 32),
    ("token", ""),
    ("token", None),
    ("extra", "field"),
    ("extra", math.nan),
    ("extra", object()),
    ("extra", {"deep": {"deeper": []}}),
]


@pytest.mark.parametrize(("field", "value"), HOSTILE, ids=lambda v: repr(v)[:24])
def test_hostile_handles_are_refused(place: Place, field: str, value: Any) -> None:
    handle = place.share(np.ones((2, 3), np.float32))
    hostile = {**handle, field: value}
    before = place.files()
    for call in (place.resolve, place.release):
        with pytest.raises(shm.ShmError) as caught:
            call(hostile)
        assert caught.value.code in {"invalid_handle", "invalid_name", "not_found"}
    assert place.files() == before
    assert place.resolve(handle).sum() == 6
    place.release(handle)


@pytest.mark.parametrize(
    "missing",
    ["__snakepit_shm__", "name", "namespace", "version", "generation", "bytes", "dtype", "shape",
     "format", "token"],
)  # fmt: skip
def test_a_missing_field_is_named(place: Place, missing: str) -> None:
    handle = place.share(b"x")
    broken = copy.deepcopy(handle)
    del broken[missing]
    with pytest.raises(shm.InvalidHandleError, match=missing.strip("_")):
        place.resolve(broken)
    place.release(handle)


def recursive() -> dict[str, Any]:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    return loop


@pytest.mark.parametrize(
    "handle",
    ["", "null", "[]", "{}", "{", "17", "\ud800", "[" * 100_000, {}, {1: 2}, recursive()],
    ids=lambda h: repr(h)[:12],
)
def test_what_is_no_handle_at_all(place: Place, handle: Any) -> None:
    with pytest.raises(shm.InvalidHandleError) as caught:
        place.resolve(handle)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("handle", [None, 3, b"{}", [("name", "x")], object()], ids=repr)
def test_what_is_neither_text_nor_mapping(place: Place, handle: Any) -> None:
    for call in (place.resolve, place.release):
        with pytest.raises(shm.InvalidHandleError, match="expected a dictionary or JSON text"):
            call(handle)
