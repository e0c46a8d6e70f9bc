"""Flow control of streaming tools: so many chunks in shared memory, and no more.

A chunk stays this process's own until its consumer removes it, which Elixir's ``execute_stream``
does as it takes it. That is seen by looking whether it is still there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import _native
from ._api import StrPath
from ._errors import NotFoundError, ShmError, TimeoutError
from ._share import Handle, release

FIRST_PAUSE = 0.0002
LONGEST_PAUSE = 0.02


class StreamStalledError(TimeoutError):
    """The consumer of a stream has taken no chunk for so long that it counts as gone."""


@dataclass(frozen=True)
class Flow:
    """How far a stream may be ahead of its consumer."""

    max_chunks: int = 8
    """Chunks with something in shared memory that were not taken yet."""
    max_bytes: int = 256 << 20
    """Bytes of these together from which a stream waits; its last chunk may bring it over them."""
    timeout: float = 30.0
    """Seconds without a chunk being taken after which the consumer counts as gone: the stream then
    ends with `StreamStalledError`, and what it had shared is removed. Chunks that are left when a
    stream has ended are removed after so long, too."""

    def __post_init__(self) -> None:
        if self.max_chunks < 1 or self.max_bytes < 1 or not self.timeout > 0:
            raise ValueError("max_chunks, max_bytes and timeout of a Flow must be positive")


@dataclass(eq=False)
class _Chunk:
    handles: list[Handle]
    dir: StrPath | None
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = sum(handle["bytes"] for handle in self.handles)

    def taken(self) -> bool:
        """Whether the consumer has removed all of it; what has gone is let go here, too."""
        left = []
        for handle in self.handles:
            if _is_there(handle, self.dir):
                left.append(handle)
            else:
                _let_go(handle, self.dir)
        self.handles = left
        return not left

    def drop(self) -> None:
        for handle in self.handles:
            _let_go(handle, self.dir)
        self.handles = []


def _is_there(handle: Handle, dir: StrPath | None) -> bool:
    place = {"namespace": handle["namespace"], "dir": dir}
    try:
        _native.inspect(handle["name"], place)
    except NotFoundError:
        return False
    except ShmError:
        return True  # there, but out of order: not gone
    return True


def _let_go(handle: Handle, dir: StrPath | None) -> None:
    # Removed by the consumer at this very moment, or with the interpreter.
    with contextlib.suppress(ShmError):
        release(handle, dir=dir)


class Window:
    """The chunks of one stream that are on their way."""

    def __init__(self, flow: Flow, dir: StrPath | None) -> None:
        self._flow = flow
        # As it is now: the environment or the working directory may be another later.
        self._dir = _native.place(None, dir)[1]
        self._chunks: list[_Chunk] = []
        self._progress = time.monotonic()

    def add(self, handles: list[Handle]) -> None:
        """Count a chunk that is about to be sent."""
        if handles:
            self._chunks.append(_Chunk(handles, self._dir))

    def wait(self) -> None:
        """Wait until there is room for another chunk.

        Raises:
            StreamStalledError: The consumer takes nothing any more.
        """
        for pause in self._pauses():
            time.sleep(pause)

    async def wait_async(self) -> None:
        """`wait`, without holding up the event loop."""
        for pause in self._pauses():
            await asyncio.sleep(pause)

    def _pauses(self) -> Iterator[float]:
        pause = FIRST_PAUSE
        self._progress = time.monotonic()
        while not self._has_room():
            if time.monotonic() - self._progress > self._flow.timeout:
                self.drop()
                raise StreamStalledError(
                    f"no chunk was taken for {self._flow.timeout} s, with "
                    f"{self._flow.max_chunks} chunks or {self._flow.max_bytes} bytes waiting",
                    remedy="take chunks faster, remove those that are done with, or allow more "
                    "with flow=Flow(...)",
                )
            yield pause
            pause = min(pause * 2, LONGEST_PAUSE)

    def _has_room(self) -> bool:
        if self._fits():
            return True
        before = len(self._chunks)
        self._chunks = [chunk for chunk in self._chunks if not chunk.taken()]
        if len(self._chunks) < before:
            self._progress = time.monotonic()
        return self._fits()

    def _fits(self) -> bool:
        ahead = sum(chunk.nbytes for chunk in self._chunks)
        return len(self._chunks) < self._flow.max_chunks and ahead < self._flow.max_bytes

    def drop(self) -> None:
        """Remove what was not taken: nobody will."""
        for chunk in self._chunks:
            chunk.drop()
        self._chunks = []

    def leave(self) -> None:
        """At the stream's end: what is on its way has so long to arrive."""
        if self._chunks:
            _leftovers.add(self._chunks, time.monotonic() + self._flow.timeout)
            self._chunks = []


class _Leftovers:
    """Chunks of streams that have ended. A thread looks after them while there are some."""

    LOOK_EVERY = 0.1

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._chunks: dict[_Chunk, float] = {}
        self._thread: threading.Thread | None = None

    def add(self, chunks: list[_Chunk], deadline: float) -> None:
        with self._lock:
            self._chunks.update((chunk, deadline) for chunk in chunks)
            if self._thread is None:
                thread = threading.Thread(
                    target=self._run, name="snakepit-shm-leftovers", daemon=True
                )
                # Where none can be had, the next stream's end tries again, or the interpreter's.
                with contextlib.suppress(RuntimeError):
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        while True:
            time.sleep(self.LOOK_EVERY)
            with self._lock:
                chunks = list(self._chunks.items())
            done = [chunk for chunk, deadline in chunks if self._is_done(chunk, deadline)]
            with self._lock:
                for chunk in done:
                    self._chunks.pop(chunk, None)
                if not self._chunks:
                    self._thread = None
                    return

    @staticmethod
    def _is_done(chunk: _Chunk, deadline: float) -> bool:
        if chunk.taken():
            return True
        if time.monotonic() < deadline:
            return False
        chunk.drop()
        return True


_leftovers = _Leftovers()


def _forget() -> None:
    """In a forked child: what its parent shared is the parent's to remove."""
    global _leftovers  # noqa: PLW0603 - a thread of the parent may have held its lock
    _leftovers = _Leftovers()


os.register_at_fork(after_in_child=_forget)
