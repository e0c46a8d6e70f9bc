"""Many values in one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import Place


@pytest.fixture
def many(place: Place) -> Any:
    writers = [place.create(f"s{i}") for i in range(20)]
    readers = [place.attach(f"s{i}") for i in range(20)]
    yield writers, readers
    for held in [*readers, *writers]:
        held.close()


def test_all_are_written_and_read_in_order(many: Any) -> None:
    writers, readers = many
    values = [b"%d" % i * (i + 1) for i in range(20)]
    assert shm.write_many(zip(writers, values, strict=True)) == [2] * 20
    assert shm.read_many(readers) == values
    assert shm.read_many(reversed(readers)) == values[::-1]
    assert shm.read_many([]) == [] == shm.write_many([])
    assert [reader.last_version for reader in readers] == [2] * 20


def test_arrays_and_large_values(place: Place) -> None:
    size = 1 << 20
    with place.create("a", size) as writer, place.attach("a") as reader:
        array = np.arange(size // 4, dtype="<f4").reshape(512, -1)
        assert shm.write_many([(writer, b"small"), (writer, array)]) == [2, 4]
        assert np.array_equal(reader.numpy(), array)
        assert shm.read_many([reader] * 3) == [array.tobytes()] * 3


def test_the_first_failure_is_raised(many: Any) -> None:
    writers, readers = many
    with pytest.raises(shm.EmptyError):
        shm.read_many(readers)
    with pytest.raises(shm.OutOfBoundsError):
        shm.write_many([(writers[0], b"in time"), (writers[1], b""), (writers[2], b"too late")])
    assert readers[0].read() == b"in time"
    assert readers[2].version == 0
    bad: Any
    for bad in [[readers[0], 42], [writers[0]], 42, None]:
        with pytest.raises(TypeError):
            shm.read_many(bad)
    for bad in [[(writers[0],)], [(readers[0], b"x")], [writers[0]], [(writers[0], 42)], 42]:
        with pytest.raises((TypeError, ValueError)):
            shm.write_many(bad)


def test_or_each_is_answered_in_its_place(many: Any) -> None:
    writers, readers = many
    values: Any = [(writers[0], b"one"), (writers[1], b""), (writers[2], 42), (writers[3], b"four")]
    written = shm.write_many(values, return_exceptions=True)
    assert written[0] == written[3] == 2
    assert isinstance(written[1], shm.OutOfBoundsError)
    assert isinstance(written[2], TypeError)
    readers[4].close()
    read = shm.read_many([readers[i] for i in (0, 1, 3, 4)], return_exceptions=True)
    assert read[0] == b"one"
    assert isinstance(read[1], shm.EmptyError)
    assert read[2] == b"four"
    assert isinstance(read[3], shm.ClosedError)


def test_what_the_iterator_raises_is_raised(many: Any) -> None:
    writers, _ = many

    def broken() -> Any:
        yield writers[0], b"x"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        shm.write_many(broken(), return_exceptions=True)
