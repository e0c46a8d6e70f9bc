"""The forms in which a shared value is resolved, each in place where its library allows it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from . import _arrow, _copies, _elements
from ._errors import CopyNeededError, InvalidOptionError, UnsupportedError
from ._native import View

if TYPE_CHECKING:
    import numpy.typing as npt

    _Form = Literal["numpy", "memoryview", "bytes", "arrow", "pandas", "polars", "torch"]


_OWN_FORM = {"raw": "memoryview", "numpy": "numpy", "arrow_ipc": "arrow"}
"""Of each format, where none is asked for."""

_PACKAGES = {"arrow": "pyarrow", "numpy": "pyarrow"}
"""Where the package is not named as the form is."""

_ASKED = "asked for with copy=True"


class Value:
    """A resolved value on its way into a form."""

    def __init__(self, view: View, element: str | None, copy: bool | None) -> None:
        self.view = view
        self.element = element
        self.copy = copy
        self.why: str | None = _ASKED if copy else None
        """Why it was copied, if it was."""

    def refuse(self, form: str, remedy: str) -> NoReturn:
        """There is no way from this value to that form."""
        what = {"raw": "bytes", "numpy": "an array", "arrow_ipc": "an Arrow table"}
        raise UnsupportedError(
            f"segment {self.view.segment} holds {what[self.view.format]}, not a value for "
            f"as_={form!r}",
            remedy=remedy,
            segment=self.view.segment,
        )

    def must_copy(self, why: str) -> None:
        """Note that there is no way without a copy.

        Raises:
            CopyNeededError: There must not be one.
        """
        if self.copy is False:
            raise CopyNeededError(
                f"the value of segment {self.view.segment} cannot be had without a copy: {why}",
                remedy="leave copy=False out, or resolve it in another form",
                segment=self.view.segment,
            )
        self.why = self.why or why

    def memory(self) -> memoryview:
        """The value's bytes: in place, or a copy if there is to be one anyway."""
        if self.copy:
            return memoryview(bytearray(self.view.memoryview()))
        return self.view.memoryview()

    def array(self) -> npt.NDArray[Any]:
        """The value as an array: in place, or a copy if there is to be one anyway."""
        array = self.view.numpy()
        if self.copy:
            array = array.copy(order="K")  # before it has fields: with the bytes between them
        return _elements.restore(array, self.element, self.view.segment)


def resolve(view: View, element: str | None, form: _Form | None, copy: bool | None) -> Any:
    """The value in that form."""
    wanted = _OWN_FORM[view.format] if form is None else form
    maker = _MAKERS.get(wanted) if isinstance(wanted, str) else None
    # A tuple, for what is given may have no hash.
    if maker is None or copy not in (None, False, True):
        option, given, expected = (
            ("copy", copy, "None, False or True")
            if maker is not None
            else ("as_", form, f"one of {', '.join(_MAKERS)} or None")
        )
        raise InvalidOptionError(f"invalid option {option}: expected {expected}, got {given!r}")
    value = Value(view, element, copy)
    try:
        made = maker(value)
    except ImportError as error:
        raise UnsupportedError(
            f"as_={wanted!r} needs a library that is not installed: {error}",
            remedy=f"pip install {_PACKAGES.get(wanted, wanted)}",
            segment=view.segment,
        ) from error
    _copies.resolved(view.segment, view.place[1], value.why)
    return made


def _memoryview(value: Value) -> memoryview:
    return value.memory()


def _bytes(value: Value) -> bytes:
    value.must_copy("bytes own their memory")
    return bytes(value.view.memoryview())


def _numpy(value: Value) -> npt.NDArray[Any]:
    if value.view.format != "arrow_ipc":
        return value.array()
    table, kind = _table(value)
    if kind == "table":
        value.refuse("numpy", "resolve it as_='arrow' and take a column")
    column = _arrow.only_column(table)
    try:
        return np.asarray(column.to_numpy(zero_copy_only=True))
    except (ValueError, NotImplementedError) as error:
        value.must_copy(str(error))
    with _conversion(value, "numpy"):
        return np.asarray(column.to_numpy(zero_copy_only=False))


def _arrow_form(value: Value) -> Any:
    if value.view.format == "arrow_ipc":
        return _arrow.read_value(value.memory(), value.view.segment)
    if value.view.format != "numpy":
        value.refuse("arrow", "resolve it as_='memoryview'")
    return _arrow_column(value, "arrow")


def _pandas(value: Value) -> Any:
    pd: Any = import_module("pandas")
    if value.view.format == "arrow_ipc":
        table, kind = _table(value)
        if not value.copy:
            _check_pandas(value, table)
        # One that fails half-way never lets go of the columns that it has converted; and without
        # rows there is nothing to copy, which it takes for a failure.
        in_place = value.why is None and table.num_rows > 0
        with _conversion(value, "pandas"):
            frame = table.to_pandas(split_blocks=True, zero_copy_only=in_place)
        if kind == "table":
            return frame
        series = frame.iloc[:, 0]
        return series.rename(None) if kind == "unnamed series" else series
    if value.view.format != "numpy":
        value.refuse("pandas", "resolve it as_='memoryview'")
    array = _numpy(value)
    if array.ndim not in (1, 2):
        value.refuse("pandas", "resolve it as_='numpy': it has not one or two dimensions")
    made: Any
    with _conversion(value, "pandas"):
        if array.ndim == 1 and array.dtype.names is None:
            made = pd.Series(array, copy=False)
            kinds = [made.dtype]
        else:
            made = pd.DataFrame(array, copy=False)  # of records, too
            kinds = list(made.dtypes)
    as_it_was = array.dtype.names is None and all(isinstance(kind, np.dtype) for kind in kinds)
    if array.size and not (as_it_was and np.may_share_memory(made.to_numpy(), array)):
        value.must_copy(f"pandas has another form of dtype {array.dtype}")
    return made


def _check_pandas(value: Value, table: Any) -> None:
    """Pandas takes numbers and times in one piece and without gaps as they are; nothing else."""
    pa: Any = import_module("pyarrow")
    types = pa.types
    taken = (types.is_integer, types.is_floating, types.is_timestamp, types.is_duration)
    for field, column in zip(table.schema, table.columns, strict=True):
        if (
            column.null_count
            or column.num_chunks > 1
            or not any(is_a(field.type) for is_a in taken)
        ):
            value.must_copy(f"pandas converts column {field.name!r} of type {field.type}")
            return


def _polars(value: Value) -> Any:
    pl: Any = import_module("polars")
    if value.view.format == "arrow_ipc":
        table, kind = _table(value)
        if not value.copy:
            _check_polars(value, table)
        with _conversion(value, "polars", pl.exceptions.PanicException):
            frame: Any = pl.from_arrow(table, rechunk=False)
        frame.columns = table.column_names  # polars has names of its own for those without
        return frame if kind == "table" else frame.to_series(0)
    if value.view.format != "numpy":
        value.refuse("polars", "resolve it as_='memoryview'")
    column = _arrow_column(value, "polars")
    if _in_other_units(column.type):
        value.must_copy(f"polars converts type {column.type}")
    return pl.from_arrow(column, rechunk=False)


def _in_other_units(kind: Any) -> bool:
    """Whether these are times in units that polars has not."""
    return str(kind).startswith(("timestamp[s", "duration[s", "time64[us"))


def _check_polars(value: Value, table: Any) -> None:
    """Polars takes columns of fixed width as they are, and its own kind of strings; no others."""
    pa: Any = import_module("pyarrow")
    types = pa.types
    taken = (types.is_integer, types.is_floating, types.is_boolean, types.is_temporal,
             lambda t: str(t) in {"string_view", "binary_view"})  # fmt: skip
    converted = (types.is_date64, types.is_time32, types.is_float16, _in_other_units)
    for field in table.schema:
        kind = field.type
        if not any(is_kind(kind) for is_kind in taken) or any(is_it(kind) for is_it in converted):
            value.must_copy(f"polars converts column {field.name!r} of type {kind}")
            return


def _torch(value: Value) -> Any:
    torch: Any = import_module("torch")
    view = value.view
    if view.format == "arrow_ipc":
        value.refuse("torch", "resolve it as_='arrow' and take a column")
    name = "uint8" if view.format == "raw" else _torch_name(value)
    dtype = getattr(torch, name, None)
    if dtype is None:
        value.refuse("torch", f"torch has no dtype {name!r}; resolve it as_='numpy'")
    array = view.numpy()
    if array.size == 0:
        return torch.empty(array.shape, dtype=dtype)
    if value.copy is not False:
        # Nothing stops a tensor from being written to, and these pages end who does.
        value.must_copy("a tensor can be written to, and this memory cannot")
        tensor = torch.frombuffer(bytearray(view.memoryview()), dtype=dtype)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about just that
            tensor = torch.frombuffer(view.memoryview(), dtype=dtype)
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        return tensor.reshape(array.shape[::-1]).permute(*range(array.ndim - 1, -1, -1))
    return tensor.reshape(array.shape)


def _torch_name(value: Value) -> str:
    if value.element in _elements.EXTENSIONS:
        return str(value.element)
    dtype = value.view.numpy().dtype
    if not dtype.isnative:
        value.refuse("torch", "torch knows this machine's byte order only; resolve it as_='numpy'")
    return dtype.name


@contextlib.contextmanager
def _conversion(value: Value, form: str, panic: type[BaseException] = Exception) -> Iterator[None]:
    """The time in which another library converts a table, which it may refuse in any way.

    Args:
        value: What is converted.
        form: Into what.
        panic: What the library raises that is no `Exception`.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except (Exception, panic) as error:
        raise UnsupportedError(
            f"{form} does not take what segment {value.view.segment} holds: {error}",
            remedy="resolve it as_='arrow'",
            segment=value.view.segment,
        ) from error


def _table(value: Value) -> tuple[Any, str]:
    return _arrow.unmarked(_arrow.read_table(value.memory(), value.view.segment))


def _arrow_column(value: Value, form: str) -> Any:
    pa: Any = import_module("pyarrow")
    array = _numpy(value)
    if array.ndim != 1:
        value.refuse(form, "resolve it as_='numpy': an Arrow array has one dimension")
    try:
        if array.dtype.kind in "iuf" and array.dtype.isnative:
            return pa.Array.from_buffers(
                pa.from_numpy_dtype(array.dtype), len(array), [None, pa.py_buffer(array)]
            )
        column = pa.array(array.astype(_arrow_dtype(array.dtype), copy=False))
    except (pa.ArrowException, TypeError, NotImplementedError) as error:
        raise UnsupportedError(
            f"Arrow has no type for an array of dtype {array.dtype}: {error}",
            remedy="resolve it as_='numpy'",
            segment=value.view.segment,
        ) from error
    values = column.buffers()[1]
    if array.size and (values is None or values.address != array.ctypes.data):
        value.must_copy(f"Arrow has another form of dtype {array.dtype}")
    return column


def _arrow_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which pyarrow takes an array: this machine's order, and whole units of time.

    Of ``"M8[25us]"`` it would take the numbers for microseconds.
    """
    dtype = dtype.newbyteorder("=")
    if dtype.kind not in "Mm":
        return dtype
    unit, count = np.datetime_data(dtype)
    return dtype if count == 1 else np.dtype(f"{dtype.kind}8[{unit}]")


_MAKERS: dict[str, Callable[[Value], Any]] = {
    "numpy": _numpy,
    "memoryview": _memoryview,
    "bytes": _bytes,
    "arrow": _arrow_form,
    "pandas": _pandas,
    "polars": _polars,
    "torch": _torch,
}
