"""Several processes: every value whole, versions in order, deaths without harm."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import PATIENCE, Place

WRITER = """
    import sys, numpy as np, snakepit_shm as shm
    size, slots, count = map(int, sys.argv[1:])
    capacity = shm.round_up_capacity(size)
    with shm.create("it", capacity, slots=slots) as writer:
        value = np.empty(size // 8, "<u8")
        value.fill(0); writer.write(value)
        print("ready", flush=True)
        assert sys.stdin.readline() == "go\\n"
        for i in range(1, count):
            value.fill(i)
            if i % 3 == 0 and slots > 1:
                with writer.loan(value.shape, value.dtype) as slot:
                    slot.fill(i)
                del slot
            else:
                writer.write(value)
        print("done", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize(("size", "count"), [(64, 20_000), (4096, 20_000), (1 << 20, 300)])
def test_no_value_of_another_process_is_ever_torn(
    place: Place, processes: list[subprocess.Popen[str]], size: int, count: int, slots: int
) -> None:
    process = place.start(WRITER, str(size), str(slots), str(count))
    processes.append(process)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    buffer = np.empty(size // 8, "<u8")
    last, reads, misses = -1, 0, 0
    with place.attach() as reader:
        process.stdin.write("go\n")
        process.stdin.flush()
        while last < count - 1:
            try:
                if reads % 2:
                    value = reader.numpy()
                else:
                    assert reader.read_into(buffer) == size
                    value = buffer
            except shm.VersionConflictError:
                # Allowed with one slot, against a writer that never rests. Not for ever.
                misses += 1
                assert slots == 1 or misses < 10_000
                continue
            first = int(value[0])
            assert (value == first).all(), "a torn value"
            assert first >= last, "an older value than before"
            last, reads = first, reads + 1
        assert process.stdout.readline() == "done\n"
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")
    assert reads > 0


def square(handle: dict[str, Any]) -> dict[str, Any]:
    """Runs in a worker of a pool: takes a handle, gives a handle."""
    array = shm.resolve(handle)
    assert not array.flags.writeable
    return shm.share(array * array, transfer=True)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pool_of_workers(place: Place, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setenv("SNAKEPIT_SHM_NAMESPACE", place.namespace)
    monkeypatch.setenv("SNAKEPIT_SHM_DIR", str(place.dir))
    arrays = [np.arange(i, i + 10_000, dtype="f8") for i in range(6)]
    handles = [place.share(array) for array in arrays]
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        results = list(pool.map(square, handles, timeout=PATIENCE))
    for array, handle, result in zip(arrays, handles, results, strict=True):
        assert (place.resolve(result) == array**2).all()
        place.release(handle)
        place.release(result)
    assert place.files() == []


def test_errors_come_back_from_a_pool(place: Place) -> None:
    handle = place.share(b"x")
    place.release(handle)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        failed = pool.submit(shm.resolve, handle, dir=place.dir)
        with pytest.raises(FileNotFoundError) as caught:
            failed.result(PATIENCE)
    assert isinstance(caught.value, shm.NotFoundError)
    assert caught.value.segment == handle["name"]


def test_a_killed_reader_harms_nobody(place: Place, processes: list[subprocess.Popen[str]]) -> None:
    with place.create() as writer:
        writer.write(b"x")
        for script in (
            "print('on', flush=True); input()",
            "print('on', flush=True); reader.wait(since=2)",
        ):
            process = place.start(f"import snakepit_shm as s; reader = s.attach('it'); {script}")
            processes.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "on\n"
            process.kill()
            process.communicate(timeout=PATIENCE)
        for i in range(100):
            writer.write(bytes([i]) * 100)
        with place.attach() as reader:
            assert reader.read() == bytes([99]) * 100
    place.sweep()  # the dead readers' entries may keep the name until then


def test_a_killed_writer_leaves_its_last_value(
    place: Place, processes: list[subprocess.Popen[str]]
) -> None:
    process = place.start(
        """
        import snakepit_shm as shm
        writer = shm.create("it", 4096)
        writer.write(b"last")
        loan = writer.loan(100)
        array = loan.__enter__()
        array[:] = 255
        print("half way", flush=True)
        input()
        """
    )
    processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "half way\n"
    reader = place.attach()
    with pytest.raises(shm.SegmentBusyError) as caught:
        place.attach_writer()
    assert str(process.pid) in str(caught.value)
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert reader.read() == b"last"
    with place.attach_writer() as writer:
        assert writer.generation == 2
        assert writer.write(b"next") == 4
        assert reader.read() == b"next"
        reader.close()


def test_hand_over_between_processes(place: Place) -> None:
    writer = place.create()
    writer.write(b"first")
    with pytest.raises(shm.SegmentBusyError):
        place.attach_writer()
    writer.release()
    assert writer.closed
    out = place.run(
        """
        import snakepit_shm as shm
        writer = shm.attach_writer("it")
        print(writer.write(b"second"), writer.generation)
        writer.release()
        """
    )
    assert out == "4 2\n"
    with place.attach() as reader:
        assert reader.read() == b"second"
    with place.attach_writer() as writer:
        assert writer.version == 4


def test_listing_and_inspecting(place: Place) -> None:
    assert shm.list_segments(**place.where) == []
    with place.create("sensor", module="hal") as writer, place.create("sensor_data", 8192):
        writer.write(np.zeros(10))
        found = {info.name: info for info in shm.list_segments(**place.where)}
        assert set(found) == {"sensor", "sensor_data"}
        info = found["sensor"]
        assert (info.capacity, info.slots, info.version, info.nbytes) == (4096, 4, 2, 80)
        assert (info.state, info.generation, info.reader_count) == ("active", 1, 0)
        assert (info.namespace, info.module) == (place.namespace, "hal")
        assert info.created_at.tzinfo is not None
        with place.attach("sensor"):
            report = shm.inspect("sensor", **place.where)
            assert (report["version"], report["len"], report["state"]) == (2, 80, "active")
            json.dumps(report)
            (again,) = [i for i in shm.list_segments(**place.where) if i.name == "sensor"]
            assert again.reader_count == 1
        writer.seal()
        (sealed,) = [i for i in shm.list_segments(**place.where) if i.name == "sensor"]
        assert sealed.state == "sealed"


def test_cleaning_up(place: Place) -> None:
    def items(found: list[shm.CleanupItem]) -> dict[str, str]:
        return {item.name: item.reason for item in found}

    # A process that ends without a word leaves its segments.
    place.run(
        """
        import os
        import snakepit_shm as shm
        a, b = shm.create("left", 4096, module="hal"), shm.create("left_data", 4096)
        a.write(b"x")
        os._exit(0)
        """
    )
    with place.create("used"), place.attach("used"):
        waits = shm.cleanup(**place.where)
        assert waits.removed == []
        assert set(items(waits.kept)) == {"left", "left_data", "used"}
        would = shm.cleanup(grace=0, module="hal", dry_run=True, **place.where)
        assert items(would.removed) == {"left": "its writer died"}
        assert shm.cleanup(grace=0, min_age=3600, **place.where).removed == []
        did = shm.cleanup(grace=0, pattern="left", **place.where)
        assert items(did.removed) == {"left": "its writer died"}
        assert did.removed[0].nbytes > 4096
        assert items(did.kept)["left_data"] == "not asked for"
        broken = place.dir / f"{place.namespace}_broken.meta"
        broken.write_text("{")
        last = shm.cleanup(grace=0, corrupted=True, **place.where)
        assert set(items(last.removed)) == {"left_data", "broken"}
        assert set(items(last.corrupted)) == {"broken"}
        assert [i.name for i in shm.list_segments(**place.where)] == ["used"]
    with pytest.raises(ValueError, match="seconds"):
        shm.cleanup(grace=-1, **place.where)


def test_removing_by_name(place: Place) -> None:
    with place.create() as writer, place.attach() as reader:
        writer.write(b"x")
        shm.remove("it", **place.where)
        assert place.files() == []
        assert reader.read() == b"x"
        with pytest.raises(shm.NotFoundError):
            place.attach()
        with pytest.raises(shm.NotFoundError):
            shm.remove("it", **place.where)
        with pytest.raises(shm.ClosedError):
            writer.write(b"y")
