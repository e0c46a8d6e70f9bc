"""Arrays of every dtype, shape and layout that can be shared, for Hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
from hypothesis import HealthCheck, settings

from snakepit_shm import _elements

PLAIN = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness="?"),
    hnp.datetime64_dtypes(),
    hnp.timedelta64_dtypes(),
    hnp.byte_string_dtypes(min_len=1, max_len=9),
    hnp.unicode_string_dtypes(min_len=1, max_len=9),
)
EXTENSIONS = st.sampled_from(sorted(_elements.EXTENSIONS)).map(
    lambda name: np.dtype(getattr(ml_dtypes, name))
)


def untitled(dtype: np.dtype[Any]) -> bool:
    fields = (dtype.base.fields or {}).values()
    return all(len(field) == 2 and untitled(field[0]) for field in fields)


RECORDS = hnp.array_dtypes(
    subtype_strategy=PLAIN, min_size=1, max_size=4, allow_subarrays=True
).filter(untitled)
NESTED = hnp.nested_dtypes(subtype_strategy=PLAIN, max_leaves=5).filter(
    lambda dtype: dtype.subdtype is None and dtype.itemsize > 0 and untitled(dtype)
)
ODD = st.sampled_from(
    [
        np.dtype("V7"),
        np.dtype("M8[25us]"),
        np.dtype("m8[1000000ns]"),
        np.dtype("U123456"),
        np.dtype([("a", "i1"), ("b", "f8")], align=True),
        np.dtype({"names": ["ä b", "c"], "formats": ["<i4", ">c8"], "offsets": [3, 20],
                  "itemsize": 40}),
    ]
)  # fmt: skip

LAYOUTS: dict[str, Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]] = {
    "C": lambda a: a,
    "F": np.asfortranarray,
    "reversed": lambda a: a[tuple(slice(None, None, -1) for _ in a.shape)] if a.ndim else a,
    "every other": lambda a: np.repeat(a, 2, axis=0)[::2] if a.ndim else a,
    "transposed": lambda a: a.T,
    "axes moved": lambda a: np.moveaxis(a, 0, -1) if a.ndim else a,
}


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    dtype = draw(st.one_of(PLAIN, EXTENSIONS, RECORDS, NESTED, ODD))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=4))
    if dtype.itemsize > 10_000:
        shape = shape[:1]
    array = np.zeros(shape, dtype)
    raw = draw(st.binary(min_size=1, max_size=64))
    if array.size and np.dtype(dtype).kind not in "bU":
        # Any bits at all, NaNs and padding included; only bools and characters have forbidden ones.
        octets = array.reshape(-1).view(np.uint8)
        if dtype.names is None:
            octets[:] = np.resize(np.frombuffer(raw, np.uint8), octets.shape)
    elif array.size and dtype.kind == "U":
        array[...] = draw(st.text("abcxyzé\U0001f40d", max_size=9))
    elif array.size:
        array[...] = np.resize(np.frombuffer(raw, np.uint8) & 1, shape).astype(bool)
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](array)


def octets(array: np.ndarray[Any, Any]) -> bytes:
    """All bytes of an array's elements, those between the fields of records included."""
    if array.dtype.names is not None:
        array = array.view(f"V{array.dtype.itemsize}")
    return np.ascontiguousarray(array).tobytes()


PROPERTY = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
