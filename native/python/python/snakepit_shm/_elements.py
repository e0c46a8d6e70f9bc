"""What the elements of an array are: dtypes as handles carry them.

A segment knows numpy's array-protocol strings of at most eight characters. What these cannot say
goes as opaque bytes (``"|V2"``), and the handle's ``element`` says what they are: the name of a
type (``"bfloat16"``), a longer string (``"<M8[25us]"``), or the JSON of a record. Handles come from
anybody, so nothing but these is believed, and never a dtype that holds pointers.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._errors import InvalidHandleError, UnsupportedError

if TYPE_CHECKING:
    import numpy.typing as npt

EXTENSIONS = frozenset(
    {
        "bfloat16",
        "float8_e3m4",
        "float8_e4m3",
        "float8_e4m3b11fnuz",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    }
)
"""Types that numpy has from ml_dtypes; torch has most of them under the same names."""

_PLAIN_KINDS = "biufcmMSU"
_TYPESTR = re.compile(r"[<>|][biufcmMSU][0-9]{1,9}(\[[0-9]{0,9}[A-Za-z]{1,2}\])?", re.ASCII)
_OPAQUE = re.compile(r"\|V[1-9][0-9]{0,5}", re.ASCII)
_LONGEST_TYPESTR = 8
_LARGEST_OPAQUE = 999_999
_LONGEST_ELEMENT = 4096
_MOST_NESTED = 8


class Storage(NamedTuple):
    """How an array's elements are stored."""

    dtype: str
    """What the segment is told."""
    element: str | None
    """What the handle says beyond that."""


def storage_of(dtype: np.dtype[Any]) -> Storage:
    """How elements of this dtype are stored.

    Raises:
        UnsupportedError: They hold pointers, have no bytes, or cannot be described.
    """
    if dtype.hasobject or dtype.kind not in _PLAIN_KINDS + "V":
        raise _refused(
            dtype,
            "it holds objects, not their bytes",
            "convert the array (astype, or one array a field), or share it as an Arrow table",
        )
    if dtype.itemsize == 0:
        raise _refused(dtype, "its elements have no bytes", "convert the array (astype)")
    if dtype.type.__module__ != "numpy":
        return _opaque(dtype, _extension(dtype))
    if dtype.kind != "V":
        if len(dtype.str) <= _LONGEST_TYPESTR:
            return Storage(dtype.str, None)
        return _opaque(dtype, dtype.str)
    if dtype.names is None:
        return Storage(f"|V{dtype.itemsize}", None)
    return _opaque(dtype, json.dumps(_record(dtype, 0), separators=(",", ":")))


def opaque(element: str, itemsize: int) -> Storage:
    """How elements of a named type are stored, such as ``bfloat16`` without ml_dtypes."""
    return Storage(f"|V{itemsize}", element)


def _opaque(dtype: np.dtype[Any], element: str) -> Storage:
    if dtype.itemsize > _LARGEST_OPAQUE:
        raise _refused(
            dtype,
            f"its elements have more than {_LARGEST_OPAQUE} bytes",
            "share the fields as arrays of their own",
        )
    if len(element) > _LONGEST_ELEMENT or not element.isascii():
        raise _refused(
            dtype,
            f"its description is no ASCII text of at most {_LONGEST_ELEMENT} characters",
            "give its fields short names, or share them as arrays of their own",
        )
    return opaque(element, dtype.itemsize)


def _extension(dtype: np.dtype[Any]) -> str:
    if dtype.name in EXTENSIONS and dtype.type.__module__ == "ml_dtypes":
        return dtype.name
    raise _refused(
        dtype,
        f"of such types only {', '.join(sorted(EXTENSIONS))} have a name in handles",
        "convert the array (astype), or share its bytes (view)",
    )


def _record(dtype: np.dtype[Any], depth: int) -> dict[str, Any]:
    fields: Any = dtype.fields
    formats: list[Any] = []
    offsets = []
    for name in dtype.names or ():
        field = fields[name]
        if len(field) > 2:  # noqa: PLR2004 - a title
            raise _refused(dtype, "its fields have titles", "leave the titles out")
        formats.append(_format(field[0], depth))
        offsets.append(field[1])
    return {
        "names": list(dtype.names or ()),
        "formats": formats,
        "offsets": offsets,
        "itemsize": dtype.itemsize,
    }


def _format(dtype: np.dtype[Any], depth: int) -> Any:
    if depth >= _MOST_NESTED:
        raise _refused(dtype, f"records go {_MOST_NESTED} levels deep at most", "flatten it")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return [_format(base, depth + 1), list(shape)]
    if dtype.names is not None:
        return _record(dtype, depth + 1)
    if dtype.kind not in _PLAIN_KINDS:
        raise _refused(
            dtype,
            "a field of a record has a plain dtype",
            "share the fields as arrays of their own",
        )
    return dtype.str


def _refused(dtype: np.dtype[Any], reason: str, remedy: str) -> UnsupportedError:
    return UnsupportedError(
        f"an array of dtype {str(dtype)[:200]!r} cannot be shared: {reason}", remedy=remedy
    )


def restore(array: npt.NDArray[Any], element: str | None, segment: str) -> npt.NDArray[Any]:
    """The array with the dtype that its handle names; over the same memory.

    Raises:
        InvalidHandleError: There is no such dtype, or it is not of that size.
        UnsupportedError: It needs ml_dtypes, which is not installed.
    """
    if element is None:
        return array
    if array.dtype.kind != "V":
        raise InvalidHandleError(
            f"invalid handle: elements of dtype {array.dtype.str!r} are what they are",
            remedy="pass the handle exactly as share returned it",
            segment=segment,
        )
    try:
        dtype = _dtype(element)
        if dtype.hasobject or dtype.itemsize != array.dtype.itemsize:
            raise ValueError("another size")
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, MemoryError) as error:
        raise InvalidHandleError(
            f"invalid handle: {element[:100]!r} is no element of {array.dtype.itemsize} bytes",
            remedy="pass the handle exactly as share returned it",
            segment=segment,
        ) from error
    return array.view(dtype)


def _dtype(element: str) -> np.dtype[Any]:
    if element in EXTENSIONS:
        try:
            import ml_dtypes
        except ImportError as error:
            raise UnsupportedError(
                f"an array of {element} needs ml_dtypes",
                remedy="pip install ml_dtypes, or resolve it as_='torch' or as_='memoryview'",
            ) from error
        named: np.dtype[Any] = np.dtype(getattr(ml_dtypes, element))
        return named
    if element.startswith("{"):
        return _record_dtype(json.loads(element), 0)
    return plain_dtype(element)


def plain_dtype(typestr: object) -> np.dtype[Any]:
    """The dtype of one of numpy's array-protocol strings, which came from anybody.

    Raises:
        ValueError: It is none, or says a dtype that is made of others or holds pointers.
    """
    if not isinstance(typestr, str) or not _TYPESTR.fullmatch(typestr):
        raise ValueError("no plain dtype")
    try:
        dtype = np.dtype(typestr)
    except (TypeError, OverflowError, SyntaxError) as error:
        raise ValueError(str(error)) from error
    if dtype.str != typestr or dtype.kind not in _PLAIN_KINDS:
        raise ValueError("not numpy's own spelling")
    return dtype


def stored_dtype(typestr: object) -> np.dtype[Any]:
    """What `Storage` tells a segment, as it comes back: `plain_dtype`, or bytes without a meaning.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(typestr, str) and _OPAQUE.fullmatch(typestr):
        return np.dtype(typestr)
    return plain_dtype(typestr)


def _record_dtype(given: object, depth: int) -> np.dtype[Any]:
    if not isinstance(given, dict) or set(given) != {"names", "formats", "offsets", "itemsize"}:
        raise ValueError("no record")
    names, offsets, size = given["names"], given["offsets"], given["itemsize"]
    numbers = [*offsets, size]
    if not all(type(n) is int and 0 <= n <= _LARGEST_OPAQUE for n in numbers):
        raise ValueError("an offset or a size that is none")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a name that is none")
    formats = [_format_dtype(f, depth) for f in given["formats"]]
    made: Any = {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
    record: np.dtype[Any] = np.dtype(made)
    return record


def _format_dtype(given: object, depth: int) -> np.dtype[Any]:
    if depth >= _MOST_NESTED:
        raise ValueError("too deep")
    if isinstance(given, list):
        base, shape = given
        if not all(type(n) is int and 0 <= n <= _LARGEST_OPAQUE for n in shape):
            raise ValueError("a shape that is none")
        many: np.dtype[Any] = np.dtype((_format_dtype(base, depth + 1), tuple(shape)))
        return many
    if isinstance(given, dict):
        return _record_dtype(given, depth + 1)
    return plain_dtype(given)
