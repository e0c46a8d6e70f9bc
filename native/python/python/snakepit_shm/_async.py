"""Waiting in event loops, and the values of a segment as iterators.

Each event loop has one `_native.Notifier`: a descriptor that the loop polls. The sleeping is done
in the native core, by one thread of this process for up to 127 segments, however many readers and
loops wait for them.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from typing import Any, Self

from . import _native
from ._errors import ClosedError, InvalidOptionError, SealedError
from ._native import Reader


class _Hub:
    """The waits of one event loop. Used by its thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._notifier = _native.Notifier()
        self._waiting: dict[int, asyncio.Future[int]] = {}
        loop.add_reader(self._notifier.fileno(), self._deliver)

    def _deliver(self) -> None:
        for token, outcome in self._notifier.take():
            future = self._waiting.pop(token, None)
            if future is None or future.done():
                continue
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    async def wait(
        self, loop: asyncio.AbstractEventLoop, reader: Reader, since: int, timeout: float | None
    ) -> int:
        there, number = self._notifier.watch(reader, since)
        if there:
            return number
        future = self._waiting[number] = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, _expire, future)
        try:
            version: int = await future
        finally:
            if timer is not None:
                timer.cancel()
            if self._waiting.pop(number, None) is not None:
                self._notifier.cancel(number)
        if version == _EXPIRED:
            assert timeout is not None  # noqa: S101
            return _native.timed_out(reader, since, timeout)
        _native.saw(reader, version)
        return version


# No version: they are even and positive.
_EXPIRED = -1


def _expire(future: asyncio.Future[int]) -> None:
    if not future.done():
        future.set_result(_EXPIRED)


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Hub] = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def _hub(loop: asyncio.AbstractEventLoop) -> _Hub:
    hub = _hubs.get(loop)
    if hub is not None:
        return hub
    with _lock:
        # A loop that was closed polls nothing any more, and its descriptor is to go.
        for other in [other for other in _hubs if other.is_closed()]:
            _hubs.pop(other, None)
        hub = _hubs[loop] = _Hub(loop)
    return hub


def _after_fork_in_child() -> None:
    """The loops and descriptors are the parent's; another of its threads may have had the lock."""
    global _hubs, _lock  # noqa: PLW0603
    _hubs = weakref.WeakKeyDictionary()
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)


async def wait(reader: Reader, since: int | None, timeout: float | None) -> int:
    """`Reader.wait_async`."""
    loop = asyncio.get_running_loop()
    since = reader.last_version if since is None else since
    return await _hub(loop).wait(loop, reader, since, timeout)


def _ended(reader: Reader, error: ClosedError | SealedError) -> bool:
    """Whether that is the segment's end, and not this reader's."""
    return isinstance(error, SealedError) or not reader.closed


class Values:
    """Every value of a segment in turn; made by `Reader.values`."""

    def __init__(self, reader: Reader, timeout: float | None) -> None:
        self._reader = reader
        self._timeout = timeout
        self._missed = 0

    @property
    def missed(self) -> int:
        """How many values between the last one and the one before it were overwritten unread."""
        return self._missed

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        while True:
            # First, so that what is published after the look below is waited for.
            newest = self._reader.version
            value = self._reader.read_next()
            if value is not None:
                data, self._missed = value
                return data
            try:
                self._reader.wait(newest, self._timeout)
            except (ClosedError, SealedError) as error:
                if _ended(self._reader, error):
                    raise StopIteration from None
                raise

    def __repr__(self) -> str:
        return f"<snakepit_shm values of {self._reader!r}>"


class Changes:
    """The values of a segment as they come; made by `Reader.changes`."""

    def __init__(
        self,
        reader: Reader,
        every: bool,
        kind: str,
        into: Any,
        since: int,
    ) -> None:
        if kind not in ("bytes", "numpy"):
            raise InvalidOptionError(
                f"invalid kind: expected 'bytes' or 'numpy', got {kind!r}",
                remedy="leave it out for bytes",
            )
        if every and (kind != "bytes" or into is not None or since != 0):
            raise InvalidOptionError(
                "invalid every: the values in turn are new bytes, from the reader's place on",
                remedy="leave out kind, into and since, or take only the newest",
            )
        if into is not None and kind != "bytes":
            raise InvalidOptionError(
                "invalid into: a buffer takes bytes",
                remedy="leave out kind, or look at the buffer with numpy.frombuffer",
            )
        self._reader = reader
        self._every = every
        self._kind = kind
        self._into = None if into is None else memoryview(into).cast("B")
        self._version = since
        self._missed = 0

    @property
    def version(self) -> int:
        """The version of the last value; of no use with ``every``."""
        return self._version

    @property
    def missed(self) -> int:
        """With ``every``: how many values before the last one were overwritten unread."""
        return self._missed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await (self._next() if self._every else self._newest())
        except (ClosedError, SealedError) as error:
            if _ended(self._reader, error):
                raise StopAsyncIteration from None
            raise

    async def _newest(self) -> Any:
        await wait(self._reader, self._version, None)
        if self._into is not None:
            length, self._version = _native.take_into(self._reader, self._into)
            return self._into[:length]
        if self._kind == "numpy":
            array, self._version = _native.take_array(self._reader)
            return array
        data, self._version = _native.take_bytes(self._reader)
        return data

    async def _next(self) -> bytes:
        while True:
            # First, so that what is published after the look below is waited for.
            newest = self._reader.version
            value = self._reader.read_next()
            if value is not None:
                data, self._missed = value
                return data
            await wait(self._reader, newest, None)

    def __repr__(self) -> str:
        return f"<snakepit_shm changes of {self._reader!r}>"
