"""The exception family."""

from __future__ import annotations

import builtins
import errno
import inspect
import pickle

import pytest

import snakepit_shm as shm
from conftest import Place
from snakepit_shm import _errors, _native


def test_every_code_of_the_core_has_a_class() -> None:
    codes = _native.error_codes()
    assert len(codes) == len(set(codes)) > 20
    assert set(codes) | {"views_alive", "copy_needed"} == set(_errors.BY_CODE)


def test_every_class_is_exported_and_documented() -> None:
    classes = [
        c for _, c in inspect.getmembers(_errors, inspect.isclass) if issubclass(c, shm.ShmError)
    ]
    assert set(classes) == {shm.ShmError, *_errors.BY_CODE.values()}
    for cls in classes:
        assert cls.__name__ in shm.__all__
        assert cls.__name__ in _errors.__all__
        assert cls.__doc__


@pytest.mark.parametrize("code", sorted(_errors.BY_CODE))
def test_every_class_is_also_a_built_in_one(code: str) -> None:
    cls = _errors.BY_CODE[code]
    assert cls.code == code
    assert issubclass(cls, shm.ShmError)
    built_in = [b for b in cls.__mro__ if b.__module__ == "builtins"]
    assert built_in[0] not in {Exception, BaseException, object}
    error = cls("it broke", remedy="mend it", segment="s")
    assert str(error) == "it broke; mend it"
    assert (error.remedy, error.segment) == ("mend it", "s")


@pytest.mark.parametrize("cls", sorted(_errors.BY_CODE.values(), key=lambda c: c.code))
def test_errors_survive_the_way_to_another_process(cls: type[shm.ShmError]) -> None:
    again = pickle.loads(pickle.dumps(cls("it broke", remedy="mend it", segment="s")))  # noqa: S301
    assert type(again) is cls
    assert (str(again), again.remedy, again.segment) == ("it broke; mend it", "mend it", "s")


def test_a_real_error_has_everything(place: Place) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        place.attach("nowhere")
    error = caught.value
    assert isinstance(error, shm.NotFoundError)
    assert (error.code, error.segment, error.errno) == ("not_found", "nowhere", errno.ENOENT)
    assert "nowhere" in str(error)
    assert error.remedy
    assert str(error).endswith(error.remedy)


def test_matching_built_ins() -> None:
    pairs = {
        shm.AlreadyExistsError: FileExistsError,
        shm.NotFoundError: FileNotFoundError,
        shm.PermissionDeniedError: PermissionError,
        shm.TimeoutError: builtins.TimeoutError,
        shm.InvalidNameError: ValueError,
        shm.InvalidSizeError: ValueError,
        shm.InvalidHandleError: ValueError,
        shm.ResourceExhaustedError: MemoryError,
        shm.IoError: OSError,
        shm.OutOfBoundsError: IndexError,
        shm.ClosedError: ValueError,
        shm.ViewsAliveError: BufferError,
        shm.UnsupportedError: NotImplementedError,
        shm.SegmentBusyError: BlockingIOError,
        shm.TruncatedError: EOFError,
    }
    for cls, built_in in pairs.items():
        assert issubclass(cls, built_in)


def test_a_code_that_python_does_not_know_yet(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(_errors.BY_CODE, "not_found")
    with pytest.raises(shm.ShmError) as caught:
        place.attach("nowhere")
    assert type(caught.value) is shm.ShmError
    assert "nowhere" in str(caught.value)
