"""Memory of what was released, kept for what is shared next."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import Place, until

MIB = 1 << 20


def stats(place: Place) -> shm.PoolStats:
    return shm.pool_stats(**place.where)


def shared(place: Place, byte: int, size: int = 2 * MIB) -> dict[str, object]:
    return place.share(np.full(size, byte, np.uint8))


def test_what_is_released_leaves_its_memory_to_the_next(place: Place) -> None:
    for n in range(5):
        handle = shared(place, n)
        array = place.resolve(handle)
        assert array[0] == n
        assert (array == n).all()
        del array
        place.release(handle)
        assert place.files() == []
        with pytest.raises(shm.NotFoundError):
            place.resolve(handle)
    found = stats(place)
    assert (found.fresh, found.reused, found.idle, found.live) == (1, 4, 1, 0)
    assert len(place.pool_files()) == 1
    assert shm.drain_pool(**place.where) == found.idle_bytes
    assert place.pool_files() == []


def test_an_array_stays_as_it_is_whatever_is_shared_next(place: Place) -> None:
    kept = []
    for n in range(10):
        handle = shared(place, n)
        kept.append(place.resolve(handle))
        place.release(handle)
    assert stats(place).draining == 10
    for _ in range(10):
        place.release(shared(place, 0xEE))
    for n, array in enumerate(kept):
        assert (array == n).all()


def test_the_next_page_faults_are_few(place: Place) -> None:
    resource = pytest.importorskip("resource")

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

    data = np.ones(16 * MIB, np.uint8)
    place.release(place.share(data))
    before = faults()
    handle = place.share(data)
    assert faults() - before < 64, "for 4096 pages"
    place.release(handle)


def test_limits(place: Place) -> None:
    shm.configure_pool(**place.where, max_idle_bytes=3 * MIB)
    handles = [shared(place, n) for n in range(3)]
    for handle in handles:
        place.release(handle)
    assert stats(place).idle == 1
    shm.configure_pool(**place.where, max_idle_bytes=0)
    assert place.pool_files() == []
    place.release(shared(place, 1))
    assert place.pool_files() == []
    shm.configure_pool(**place.where, idle_timeout=0.02, strategy="best_fit", zero="always")
    place.release(shared(place, 1))
    until(lambda: place.pool_files() == [], "idle memory is given back")


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_idle_bytes": -1},
        {"max_idle": "many"},
        {"idle_timeout": -0.5},
        {"idle_timeout": float("nan")},
        {"strategy": "next_fit"},
        {"zero": True},
    ],
)
def test_limits_that_are_none(place: Place, wrong: dict[str, object]) -> None:
    with pytest.raises(shm.InvalidOptionError, match=next(iter(wrong))):
        shm.configure_pool(**place.where, **wrong)  # type: ignore[arg-type]


def test_a_child_leaves_its_parents_memory_alone(place: Place) -> None:
    place.release(shared(place, 1))
    (kept,) = place.pool_files()
    child = os.fork()
    if child == 0:
        found = stats(place)
        os._exit(0 if (found.idle, shm.drain_pool(**place.where)) == (0, 0) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert place.pool_files() == [kept]
    place.release(shared(place, 2))
    assert stats(place).reused == 1


def test_a_view_in_a_forked_child_stays_as_it_is(place: Place) -> None:
    handle = shared(place, 1)
    array = place.resolve(handle)
    go, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tell)
        os.read(go, 1)
        os._exit(0 if (array == 1).all() else 1)
    del array
    place.release(handle)
    after = [shared(place, n) for n in (2, 3)]
    os.write(tell, b"!")
    assert os.waitpid(child, 0)[1] == 0, "the child saw bytes of another object"
    for handle in after:
        place.release(handle)
    os.close(go)
    os.close(tell)


def test_an_interpreter_that_ends_leaves_nothing(place: Place) -> None:
    place.run(
        """
        import snakepit_shm as shm
        for _ in range(3):
            shm.release(shm.share(bytes(1 << 20)))
        kept = shm.share(bytes(1 << 20))
        assert shm.pool_stats().reused == 3
        """
    )
    assert os.listdir(place.dir) == []


def test_one_that_is_killed_leaves_what_the_next_removes(place: Place) -> None:
    process = place.start(
        """
        import snakepit_shm as shm, time
        shm.release(shm.share(bytes(1 << 20)))
        print("ready", flush=True)
        time.sleep(600)
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert len(place.pool_files()) == 1
    assert shm.cleanup(**place.where).removed == []
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    removed = shm.cleanup(**place.where).removed
    assert [item.reason for item in removed] == ["kept by a process that died"]
    assert place.pool_files() == []


def test_what_another_handed_over_comes_into_this_pool(place: Place) -> None:
    script = """
        import json, snakepit_shm as shm
        print(json.dumps(shm.share(b"x" * (1 << 20), transfer=True)))
        """
    handle = place.run(script)
    assert bytes(place.resolve(handle)[:1]) == b"x"
    place.release(handle)
    assert (stats(place).idle, place.files()) == (1, [])
    place.release(shared(place, 1, MIB))
    assert stats(place).reused == 1
