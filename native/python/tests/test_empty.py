"""Arrays that lie in shared memory before they are shared: nothing is copied, nothing is left."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import snakepit_shm as shm
from arrays_of_any_kind import PROPERTY, arrays, octets
from conftest import Place, until

MIB = 1 << 20


def copied() -> int:
    return shm.copy_stats().shared_copied


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "dtype",
    ["f8", "?", "<c16", ">i2", "M8[ns]", "M8[25us]", "U5", "S3", "V3", ml_dtypes.bfloat16,
     [("a", "i1"), ("b", "f8")]],
    ids=str,
)  # fmt: skip
def test_what_was_filled_in_place_is_shared_in_place(place: Place, order: Any, dtype: Any) -> None:
    array = shm.zeros((3, 4, 5), dtype, order, **place.where)
    assert array.dtype == np.dtype(dtype)
    assert array.flags.writeable
    assert not array.view(f"V{array.dtype.itemsize}").any() if array.dtype.kind != "U" else True
    array[1, 2, 3] = np.ones((), dtype)
    before = copied()
    wanted = array.copy()
    handle = shm.share(array, copy=False)
    assert copied() == before
    got = place.resolve(json.dumps(handle))
    assert got.dtype == array.dtype
    assert (got == wanted).all()
    assert got.flags.f_contiguous == (order == "F")
    place.release(handle)
    assert (array == wanted).all()  # it lives on
    assert place.files() == []


@given(array=arrays())
@settings(PROPERTY, max_examples=150)
def test_every_kind_of_array_is_shared_in_place(place: Place, array: np.ndarray[Any, Any]) -> None:
    filled = shm.empty_like(array, **place.where)
    raw = f"V{array.dtype.itemsize}"
    filled.view(raw)[...] = array.view(raw)
    assert filled.flags.f_contiguous or not array.flags.f_contiguous
    handle = shm.share(filled, copy=False) if array.size else place.share(filled)
    got = place.resolve(handle, copy=False)
    assert got.dtype == array.dtype
    assert octets(got) == octets(array)
    del filled, got
    place.release(handle)
    assert place.files() == []


def test_nobody_can_write_to_it_afterwards(place: Place) -> None:
    array = shm.empty(1000, "f4", **place.where)
    array[:] = 1
    handle = place.share(array)
    assert shm.copy_stats().shared_in_place > 0
    got = place.resolve(handle)
    for own in (array, array.base):
        with pytest.raises(ValueError, match="read-only"):
            own[0] = 2
        with pytest.raises(ValueError, match="WRITEABLE"):
            own.flags.writeable = True
    with pytest.raises((ValueError, BufferError, TypeError)):
        memoryview(array)[0] = 2.0
    assert (got == 1).all()
    place.release(handle)


def test_nor_by_the_object_that_holds_the_memory(place: Place) -> None:
    array = shm.zeros(3, **place.where)
    holder = array.base.base  # type: ignore[union-attr]
    assert np.asarray(holder).flags.writeable
    handle = place.share(array, copy=False)
    assert not np.asarray(holder).flags.writeable
    place.release(handle)


def test_other_arrays_over_it_are_found(place: Place) -> None:
    array = shm.zeros((10, 10), **place.where)
    part = array[2:4]
    with pytest.raises(shm.ViewsAliveError, match="other arrays") as caught:
        place.share(array, copy=False)
    assert isinstance(caught.value, BufferError)
    assert array.flags.writeable
    before = copied()
    handle = place.share(array)  # by a copy then
    assert copied() == before + 1
    part[:] = 7
    assert not place.resolve(handle).any()
    place.release(handle)
    del part
    handle = place.share(array, copy=False)
    assert place.resolve(handle)[2].tolist() == [7] * 10
    place.release(handle)


def test_all_of_it_in_another_shape_is_shared_in_place(place: Place) -> None:
    array = shm.zeros((4, 6), "i4", **place.where)
    array[:] = np.arange(24).reshape(4, 6)
    array = array.reshape(2, 12)
    handle = place.share(array, copy=False)
    assert place.resolve(handle).tolist() == np.arange(24).reshape(2, 12).tolist()
    place.release(handle)
    array = shm.zeros((4, 6), "i4", **place.where)
    array[:] = np.arange(24).reshape(4, 6)
    array = array.T
    handle = place.share(array, copy=False)
    assert handle["order"] == "F"
    assert (place.resolve(handle) == array).all()
    place.release(handle)


def test_parts_of_it_are_copied(place: Place) -> None:
    array = shm.zeros((4, 6), "i4", **place.where)
    for part in (lambda: array[1:], lambda: array[::-1], lambda: array[:, ::2]):
        with pytest.raises(shm.CopyNeededError):
            place.share(part(), copy=False)
        before = copied()
        handle = place.share(part())
        assert copied() == before + 1
        place.release(handle)
    assert array.flags.writeable


def test_what_lies_elsewhere_needs_a_copy(place: Place) -> None:
    for obj in (np.zeros(3), b"x", bytearray(3), memoryview(b"x")):
        with pytest.raises(shm.CopyNeededError, match="shared memory") as caught:
            place.share(obj, copy=False)
        assert isinstance(caught.value, ValueError)
    array = shm.zeros(3, **place.where)
    for options in ({"name": "other"}, {"permissions": 0o600}, {"integrity": "crc32c"}):
        with pytest.raises(shm.CopyNeededError, match="empty"):
            place.share(array, copy=False, **options)
    handle = place.share(array, copy=True)
    array[0] = 5
    assert place.resolve(handle)[0] == 0
    place.release(handle)


def test_name_and_checksum_are_those_of_empty(place: Place) -> None:
    array = shm.empty((5,), name="mine", integrity="crc32c", **place.where)
    array[:] = 3
    handle = place.share(array, copy=False)
    assert handle["name"] == "mine"
    assert place.resolve(handle).tolist() == [3] * 5
    place.release(handle)


def test_what_was_not_shared_leaves_nothing(place: Place) -> None:
    array = shm.empty(MIB, "u1", **place.where)
    part = array[5:]
    assert len(place.files()) == 2
    del array
    gc.collect()
    part[:] = 1  # it keeps the memory
    assert len(place.files()) == 2
    del part
    assert place.files() == []
    found = shm.pool_stats(**place.where)
    assert (found.idle, found.live) == (1, 0)
    array = shm.empty(MIB, "u1", **place.where)  # the memory that was kept
    assert shm.pool_stats(**place.where).reused == 1
    del array


def test_the_next_array_faults_no_page(place: Place) -> None:
    resource = pytest.importorskip("resource")

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

    for turn in range(3):
        before = faults()
        array = shm.empty((16 * MIB,), "u1", **place.where)
        array[:] = turn
        handle = place.share(array, copy=False)
        del array
        place.release(handle)
        assert turn == 0 or faults() - before < 64, "for 4096 pages"


def test_empty_arrays_take_no_memory(place: Place) -> None:
    array = shm.empty((3, 0), "i2", **place.where)
    assert place.files() == []
    handle = place.share(array)
    assert place.resolve(handle).shape == (3, 0)
    place.release(handle)


def test_like_another(place: Place) -> None:
    model = np.asfortranarray(np.ones((3, 4), ">i2"))
    array = shm.empty_like(model, **place.where)
    assert (array.dtype, array.shape) == (model.dtype, model.shape)
    assert array.flags.f_contiguous
    assert not array.flags.c_contiguous


@pytest.mark.parametrize("shape", ["12", -1, (2, -1), 1.5, (1.5,), object(), None, [1, "2"]])
def test_shapes_that_are_none(place: Place, shape: Any) -> None:
    with pytest.raises(shm.InvalidOptionError, match="shape"):
        shm.empty(shape, **place.where)
    assert os.listdir(place.dir) == []


def test_what_cannot_be_had(place: Place) -> None:
    for shape, dtype in (((1,) * 7, "f4"), (3, object), (3, [("a", "O")]), (3, "(2,)f4")):
        with pytest.raises(shm.UnsupportedError):
            shm.empty(shape, dtype, **place.where)
    with pytest.raises(shm.InvalidOptionError, match="order"):
        shm.empty(3, order="K", **place.where)  # type: ignore[arg-type]
    with pytest.raises(shm.InvalidOptionError, match="order"):
        shm.empty(3, order=[], **place.where)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        shm.empty(3, "no such type", **place.where)
    with pytest.raises(shm.InvalidSizeError):
        shm.empty(1 << 40, **place.where)
    for beyond in (1 << 63, (1 << 40, 1 << 40), 10**30):
        with pytest.raises(shm.InvalidSizeError):
            shm.empty(beyond, **place.where)
    for beyond in ((0, 1 << 62, 8), (0, 1 << 70)):
        with pytest.raises(shm.InvalidOptionError, match="shape"):
            shm.empty(beyond, **place.where)
    assert os.listdir(place.dir) == []


def test_a_file_that_was_cut_under_an_array_is_named_and_leaves_nothing(place: Place) -> None:
    array = shm.empty(100_000, "u1", **place.where)
    array[:] = 7
    with place.segment_file().open("r+b") as file:
        file.truncate(8192)
    for again in range(2):
        with pytest.raises(shm.ShmError) as caught:
            place.share(array)
        assert isinstance(caught.value, shm.ClosedError if again else shm.TruncatedError)
    del array, caught
    gc.collect()
    assert place.files() == []


def test_zeros_are_zeros_between_the_fields_of_records_too(place: Place) -> None:
    dtype = np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8]})
    before = shm.empty(100, dtype, **place.where)
    before.view("u1")[:] = 0xAA
    del before
    gc.collect()
    array = shm.zeros(100, dtype, **place.where)  # in the same memory
    assert not array.view("u1").any()
    del array
    assert shm.zeros((2, 0), dtype, **place.where).size == 0


@pytest.mark.parametrize("shape", [np.int64(3), (np.int8(3),), np.array(3), [np.uint64(3)]])
def test_shapes_may_be_of_any_whole_numbers(place: Place, shape: Any) -> None:
    assert shm.empty(shape, "i4", **place.where).shape == (3,)


def test_a_wrong_ttl_leaves_the_array_as_it_was(place: Place) -> None:
    array = shm.zeros(3, **place.where)
    for ttl in (0, -1.0, float("nan"), 8 * 24 * 3600.0, None, "60"):
        with pytest.raises(shm.InvalidOptionError, match="ttl"):
            place.share(array, transfer=True, ttl=ttl)
    array[:] = 1
    handle = place.share(array, transfer=True, copy=False)
    assert place.resolve(handle).tolist() == [1, 1, 1]
    place.release(handle)


def test_given_away(place: Place) -> None:
    out = place.run(
        """
        import json, numpy, snakepit_shm
        array = snakepit_shm.empty((2, 3), "f4")
        array[:] = 7
        print(json.dumps(snakepit_shm.share(array, transfer=True, copy=False)))
        array.sum()
        """
    )
    assert place.resolve(out).sum() == 42
    place.release(out)
    assert place.files() == []


def test_an_interpreter_that_ends_leaves_nothing(place: Place) -> None:
    out = place.run(
        """
        import atexit, snakepit_shm
        array = snakepit_shm.empty(1 << 20, "u1")
        atexit.register(lambda: print(int(array[:].sum()) >= 0, flush=True))
        array[:] = 1
        part = array[10:]
        shared = snakepit_shm.empty(100)
        handle = snakepit_shm.share(shared, copy=False)
        class Late:
            def __del__(self): part[0] = 2
        import builtins; builtins.late = Late()
        """
    )
    assert out == "True\n"
    assert place.files() == []


def test_one_that_is_killed_leaves_nothing_after_the_grace(
    place: Place, processes: list[Any]
) -> None:
    process = place.start(
        """
        import snakepit_shm
        array = snakepit_shm.empty(1 << 20, "u1")
        array[: 1 << 19] = 1
        print("half", flush=True)
        input()
        """
    )
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not (shm.cleanup(grace=0.0, **place.where), place.files())[1], "cleanup")


def test_a_forked_child_leaves_its_parents_array_alone(place: Place) -> None:
    out = place.run(
        """
        import gc, os, snakepit_shm
        array = snakepit_shm.empty(1000, "u1")
        array[:] = 1
        child = os.fork()
        if not child:
            handle = snakepit_shm.share(array)      # by a copy: it is the parent's to share
            assert snakepit_shm.copy_stats().shared_copied == 1
            assert snakepit_shm.resolve(handle).sum() == 1000
            snakepit_shm.release(handle)
            del array
            gc.collect()
            snakepit_shm.drain_pool()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        handle = snakepit_shm.share(array, copy=False)
        print(snakepit_shm.resolve(handle).sum())
        """
    )
    assert out == "1000\n"
    until(lambda: place.files() == [], "an empty directory")


def test_copies_are_logged(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "snakepit_shm"):
        handle = place.share(b"x" * 10)
        place.resolve(handle)
        place.resolve(handle, as_="bytes")
    place.release(handle)
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(" ", 2)[2].partition(":")[0] for text in said] == [
        "by a copy of 10 bytes",
        "in place (10 bytes)",
        "by a copy of 10 bytes",
    ]
