"""`borrow`: fill a region in place that its owner, an Elixir program, has lent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

from ._api import StrPath, attach_writer
from ._elements import plain_dtype
from ._errors import InvalidHandleError, NotFoundError
from ._native import Loan, Writer
from ._share import Handle, check_ttl

if TYPE_CHECKING:
    import numpy.typing as npt  # at run time it would be one more module to import

_MARKER = "__snakepit_shm_loan__"
_NEEDED = {_MARKER: int, "name": str, "namespace": str, "size": int, "token": str}
_ALLOWED = {**_NEEDED, "dtype": str, "shape": list}


@final
class Borrowed:
    """The memory of a loan, for one ``with`` block; made by `borrow`."""

    def __init__(
        self,
        loan: Mapping[str, Any],
        shape: int | Sequence[int] | None,
        dtype: npt.DTypeLike | None,
        dir: StrPath | None,
        ttl: float,
    ) -> None:
        self._loan_map, self._shape, self._dtype = loan, shape, dtype
        self._dir, self._ttl = dir, ttl
        self._writer: Writer | None = None
        self._loan: Loan | None = None
        self._handle: Handle | None = None

    @property
    def handle(self) -> Handle:
        """The handle of what was filled in, to be sent back; there after the ``with`` block.

        Raises:
            NotFoundError: The block has not ended, or ended with an exception.
        """
        if self._handle is None:
            raise NotFoundError(
                f"what {self._loan_map['name']} was filled with has no handle yet",
                remedy="ask for it after the with block, if that ended without an exception",
            )
        return self._handle

    def __enter__(self) -> npt.NDArray[Any]:
        given = self._loan_map
        writer = attach_writer(given["name"], namespace=given["namespace"], dir=self._dir)
        try:
            if writer._incarnation != given["token"]:
                raise InvalidHandleError(
                    f"invalid loan: {given['name']} is not (any more) the region that was lent",
                    remedy="ask for a new loan",
                )
            loan = writer.loan(self._shape, self._dtype)
            array: npt.NDArray[Any] = loan.__enter__()
        except BaseException:
            writer._leave()
            raise
        self._writer, self._loan = writer, loan
        return array

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        writer, loan = self._writer, self._loan
        self._writer = self._loan = None
        if writer is None or loan is None:
            return
        try:
            loan.__exit__(kind, error, traceback)
            if kind is None:
                writer.seal()
                self._handle = writer.handle()
                writer.give_away(self._ttl)
        finally:
            if self._handle is None:
                # The owner has it back, half filled or not, and may lend it again.
                writer._leave()


def borrow(
    loan: Mapping[str, Any] | str,
    *,
    shape: int | Sequence[int] | None = None,
    dtype: npt.DTypeLike | None = None,
    dir: StrPath | None = None,
    ttl: float = 60.0,
) -> Borrowed:
    """Fill a region in place that an Elixir program has lent (``lend_region``): no copy at all.

    ``with (borrowed := snakepit_shm.borrow(loan)) as array: array[:] = ...`` fills it in; when the
    block ends the value is sealed and given away, and ``borrowed.handle`` is the answer to send.
    When it ends with an exception, or this process dies, the owner has the region back.

    Args:
        loan: The dictionary that came from Elixir, or its JSON text.
        shape: Of the array, unless the loan says it; without a dtype a number of bytes.
        dtype: Of the array, unless the loan says it; without one the value is plain bytes.
        dir: As in `create`.
        ttl: Seconds that the value waits to be fetched should its owner die, up to seven days.

    Raises:
        InvalidHandleError: A field is missing, unknown or wrong, or the region is not (any more)
            the one that was lent.
        NotFoundError: The region was removed.
        SegmentBusyError: Another process fills it.
        SealedError: It was filled and sealed before.
        InvalidOptionError: ``ttl`` is not above 0, or more than seven days.
    """
    given = _parse(loan)
    check_ttl(ttl)
    if dtype is None and "dtype" in given:
        try:
            dtype = plain_dtype(given["dtype"])
        except ValueError as error:
            raise _invalid(f"dtype {given['dtype'][:40]!r} is none") from error
        shape = given.get("shape") if shape is None else shape
    return Borrowed(given, shape, dtype, dir, ttl)


def _parse(loan: Mapping[str, Any] | str) -> Mapping[str, Any]:
    if isinstance(loan, str):
        try:
            loan = json.loads(loan)
        except (ValueError, RecursionError) as error:
            raise _invalid(str(error)) from error
    if not isinstance(loan, Mapping):
        raise _invalid(f"expected a dictionary or JSON text, got {type(loan).__qualname__}")
    for key in _NEEDED:
        if key not in loan:
            raise _invalid(f"{key} is missing")
    for key, value in loan.items():
        expected = _ALLOWED.get(key) if isinstance(key, str) else None
        # A bool is an int to Python.
        if expected is None or type(value) is not expected:
            raise _invalid(f"field {str(key)[:64]!r} is unknown or of a wrong type")
    if loan[_MARKER] != 1:
        raise _invalid(f"{_MARKER} must be 1")
    if any(type(dim) is not int or dim < 0 for dim in loan.get("shape", ())):
        raise _invalid("shape must hold whole numbers, not negative")
    return dict(loan)


def _invalid(reason: str) -> InvalidHandleError:
    return InvalidHandleError(
        f"invalid loan: {reason}", remedy="pass the loan exactly as lend_region answered it"
    )
