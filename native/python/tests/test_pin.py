"""Values in place while the writer goes on."""

from __future__ import annotations

import gc
import os
import sys

import numpy as np
import pytest

import snakepit_shm as shm
from conftest import Place


def test_a_pinned_array_stays_as_it_is(place: Place) -> None:
    with place.create(slots=4) as writer, place.attach() as reader:
        with pytest.raises(shm.EmptyError):
            reader.pin()
        writer.write(np.arange(500, dtype="<f4").reshape(50, 10))
        with reader.pin() as pin:
            array = pin.numpy()
            assert (pin.in_place, pin.version, pin.segment, len(pin)) == (True, 2, "it", 2000)
            assert array.shape == (50, 10)
            assert not array.flags.writeable
            for n in range(3000):
                writer.write(np.full(500, n, dtype="<f4"))
            assert (array.ravel() == np.arange(500)).all()
            assert pin.memoryview()[:8] == np.arange(2, dtype="<f4").tobytes()
            assert pin.is_intact
            del array
        assert reader.last_version == 2
        assert (reader.numpy() == 2999).all()


def test_it_takes_no_memory_and_is_where_the_value_lies(place: Place) -> None:
    with place.create(size=64 << 20, slots=3) as writer, place.attach() as reader:
        writer.write(bytes(64 << 20))
        with reader.pin() as one, reader.pin() as two:
            first = one.numpy().__array_interface__["data"]
            assert first == two.numpy().__array_interface__["data"]
            gc.collect()


def test_released_only_without_views(place: Place) -> None:
    with place.create(slots=3) as writer:
        reader = place.attach()
        writer.write(b"value")
        pin = reader.pin()
        view = pin.memoryview()
        with pytest.raises(BufferError, match="still alive"):
            pin.release()
        with pytest.raises(BufferError, match="still held"):
            reader.close()
        assert bytes(view) == b"value"
        del view
        pin.release()
        pin.release()
        with pytest.raises(shm.ClosedError):
            pin.numpy()
        assert repr(pin) == '<snakepit_shm.Pin of "it", version 2>'
        reader.close()


def test_beyond_the_limit_it_is_a_copy(place: Place) -> None:
    with place.create(slots=3) as writer, place.attach() as reader, place.attach() as other:
        writer.write(b"first")
        with reader.pin() as first:
            writer.write(b"second")
            with other.pin() as second:
                writer.write(b"third")
                assert (first.in_place, second.in_place) == (True, False)
                assert bytes(first.memoryview()) == b"first"
                assert bytes(second.memoryview()) == b"second"
        with other.pin() as third:
            assert third.in_place


def test_a_sealed_value_needs_no_pin(place: Place) -> None:
    with place.create(slots=1) as writer, place.attach() as reader:
        writer.write(b"for ever")
        writer.seal()
        with reader.pin() as pin:
            assert pin.in_place
            assert bytes(pin.memoryview()) == b"for ever"


def test_a_pin_that_was_forgotten_goes_with_its_last_array(place: Place) -> None:
    with place.create(slots=3) as writer, place.attach() as reader:
        writer.write(b"first")
        array = reader.pin().numpy()
        writer.write(b"second")
        with place.attach() as other:
            with other.pin() as pin:
                assert not pin.in_place
            assert bytes(array) == b"first"
            del array
            gc.collect()
            with other.pin() as pin:
                assert pin.in_place


def test_a_forked_child_takes_no_pin_of_its_parent(place: Place) -> None:
    with place.create(slots=3) as writer, place.attach() as reader:
        writer.write(b"value")
        with reader.pin() as pin:
            child = os.fork()
            if child == 0:
                mine = reader.pin()
                right = not mine.in_place and bytes(mine.memoryview()) == b"value"
                pin.release()
                sys.stdout.flush()
                os._exit(0 if right else 1)
            assert os.waitpid(child, 0)[1] == 0
            for n in range(100):
                writer.write(bytes([n]))
            assert bytes(pin.memoryview()) == b"value"
