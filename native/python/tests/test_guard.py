"""A file cut by another program harms nobody; a fault that is not ours kills as ever."""

from __future__ import annotations

import signal

import pytest

import snakepit_shm
from conftest import Place

HEAD = """
import faulthandler, os, sys
import numpy as np
import snakepit_shm

def cut(length):
    shm, prefix = os.environ["SNAKEPIT_SHM_DIR"], os.environ["SNAKEPIT_SHM_NAMESPACE"] + "_"
    ours = (f for f in os.listdir(shm) if f.startswith(prefix) and not f.endswith(".meta"))
    os.truncate(os.path.join(shm, *ours), length)

SIZE = 1 << 20
"""

VIEW = (
    HEAD
    + """
writer = snakepit_shm.create("it", SIZE, slots=1)
writer.write(np.full(SIZE, 7, np.uint8))
writer.seal()
reader = snakepit_shm.attach("it")
view = reader.numpy()
assert view.sum() == 7 * SIZE
if sys.argv[1] == "after":
    faulthandler.enable()
cut(0)
assert view.sum() == 0, "zeros, and no death, in numpy's own code"
assert bytes(memoryview(view)[:10]) == bytes(10)
try:
    reader.numpy()
except snakepit_shm.TruncatedError as error:
    print(error.code)
del view
"""
)


def end(place: Place) -> None:
    """Remove by hand what is too broken to be removed by name."""
    snakepit_shm.remove("it", **place.where)
    place.create("sweep").close()


@pytest.mark.parametrize("faulthandler", ["off", "before", "after"])
def test_truncated_under_numpy(place: Place, faulthandler: str) -> None:
    # `start` enables the fault handler before us (-X faulthandler); it is disabled for "off".
    first = "import faulthandler\n" + (
        "faulthandler.disable()\n" if faulthandler != "before" else ""
    )
    process = place.start(first + VIEW, faulthandler)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.strip() == "truncated"
    # A fault handler put over ours prints what it saw, then lets ours repair it.
    assert ("Bus error" in err) == (faulthandler == "after")
    end(place)


def test_truncated_under_a_reader_and_a_writer(place: Place) -> None:
    out = place.run(
        HEAD
        + """
writer = snakepit_shm.create("it", SIZE, slots=2)
value = np.full(SIZE, 7, np.uint8)
writer.write(value)
reader = snakepit_shm.attach("it")
cut(128 * 1024)
writes = lambda: [writer.write(value) for _ in range(3)]
for call in (reader.read, writes, lambda: writer.write(b"x")):
    try:
        call()
    except snakepit_shm.TruncatedError as error:
        print(error.code)
"""
    )
    assert out.split() == ["truncated"] * 3
    end(place)


def test_a_fault_that_is_not_ours_kills_as_ever(place: Place) -> None:
    process = place.start(
        HEAD
        + """
import mmap, tempfile
faulthandler.disable()
writer = snakepit_shm.create("it", 4096)
other = tempfile.TemporaryFile()
other.truncate(8192)
mapped = mmap.mmap(other.fileno(), 8192)
other.truncate(0)
print("now", flush=True)
mapped[5000]
print("not reached", flush=True)
"""
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGBUS
    assert out.split() == ["now"]
    place.sweep()
