"""Snakepit tools that get and return arrays, tables and bytes of any size.

On a tool, above or below Snakepit's own decorator:

    from snakepit_bridge.base_adapter import BaseAdapter, tool
    from snakepit_shm.snakepit import shared_arguments

    class Images(BaseAdapter):
        @tool(description="Blur a picture")
        @shared_arguments
        def blur(self, picture, radius: int = 2):
            return gaussian(picture, radius)      # ndarray in, ndarray out

or on a whole adapter, whose tools then need no decorator:

    from snakepit_shm.snakepit import SharedMemoryAdapter

    class Images(SharedMemoryAdapter, BaseAdapter):
        ...

Called from Elixir by ``Snakepit.SharedMemory.Bridge``. Handles in arguments, however deep, become
what they name, in place: arrays, tables, memoryviews, text. Of results, what is large or what JSON
cannot carry is put into shared memory and given to the caller. A call from inside a tool to another
one of the same context passes values as they are.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

from ._api import StrPath
from ._errors import ShmError
from ._share import share
from ._snakepit_flow import Flow, StreamStalledError, Window
from ._snakepit_member import stay
from ._snakepit_wire import CHUNK, Encoder, decode, share_for_good, special

__all__ = [
    "ArgumentsNotResolvedError",
    "Flow",
    "Options",
    "SharedMemoryAdapter",
    "StreamStalledError",
    "shared_arguments",
]

UNRESOLVED = "[snakepit-shm: arguments not resolved]"
"""By this the Elixir side knows that the tool was not called and may be called again."""

_inside: ContextVar[bool] = ContextVar("snakepit_shm_inside_tool", default=False)

_Tool = TypeVar("_Tool", bound=Callable[..., Any])


class ArgumentsNotResolvedError(RuntimeError):
    """An argument's handle names nothing that this process can open. The tool was not called."""


@dataclass(frozen=True)
class Options:
    """How a tool's values travel."""

    threshold: int = 64 << 10
    """Bytes of UTF-8 from which returned text is shared. Bytes, arrays and tables always are."""
    raw: Literal["memoryview", "bytes"] = "memoryview"
    """What bytes arrive as: a view of the shared memory, or a copy as ``bytes``."""
    flow: Flow = Flow()  # noqa: RUF009 - frozen
    """How far a streaming tool may be ahead of its consumer."""
    namespace: str | None = None
    """As in `create`."""
    dir: StrPath | None = None
    """As in `create`."""

    def __post_init__(self) -> None:
        if self.threshold < 1:
            raise ValueError(f"threshold must be positive, got {self.threshold}")
        if self.raw not in {"memoryview", "bytes"}:
            raise ValueError(f"raw must be 'memoryview' or 'bytes', got {self.raw!r}")


@overload
def shared_arguments(tool: _Tool, /, *, options: Options | None = None) -> _Tool: ...
@overload
def shared_arguments(
    tool: None = None, /, *, options: Options | None = None
) -> Callable[[_Tool], _Tool]: ...
def shared_arguments(tool: Any = None, /, *, options: Options | None = None) -> Any:
    """Decorate a tool so that its arguments and results may lie in shared memory.

    For functions and methods, coroutine functions, generators and asynchronous generators; each
    stays what it is, with its signature, name and attributes.

    Args:
        tool: What is decorated; without it, ``shared_arguments(options=...)`` is the decorator.
        options: How its values travel.

    The decorated tool raises:
        ArgumentsNotResolvedError: A handle in its arguments could not be resolved.
        InvalidSizeError: A value of its result has more than 1 GiB.
        StreamStalledError: It is a stream, and nobody takes its chunks.
    """
    if tool is None:
        return functools.partial(_decorate, options=options or Options())
    return _decorate(tool, options or Options())


def _decorate(tool: Callable[..., Any], options: Options) -> Callable[..., Any]:
    wrapper: Callable[..., Any]
    if isinstance(tool, classmethod | staticmethod):
        return type(tool)(_decorate(tool.__func__, options))
    if not callable(tool):
        raise TypeError(f"a tool is a function or a method, got {type(tool).__qualname__}")
    if inspect.isasyncgenfunction(tool):

        async def wrapper(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            if _inside.get():
                stream = tool(*args, **kwargs)
            else:
                args, kwargs = _arguments(args, kwargs, options)
                stream = _stream_async(tool(*args, **kwargs), options)
            async with contextlib.aclosing(stream):
                async for item in stream:
                    yield item

    elif inspect.isgeneratorfunction(tool):

        def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            if _inside.get():
                return (yield from tool(*args, **kwargs))
            args, kwargs = _arguments(args, kwargs, options)
            return (yield from _stream(tool(*args, **kwargs), options))

    elif inspect.iscoroutinefunction(tool):

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            if _inside.get():
                return await tool(*args, **kwargs)
            args, kwargs = _arguments(args, kwargs, options)
            return await _awaited(tool(*args, **kwargs), options)

    else:

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if _inside.get():
                return tool(*args, **kwargs)
            args, kwargs = _arguments(args, kwargs, options)
            with _in_tool():
                result = tool(*args, **kwargs)
            return _finished(result, options)

    return functools.wraps(tool)(wrapper)


class _in_tool:  # noqa: N801 - used like a function
    """The time in which calls of tools are calls within a tool."""

    def __enter__(self) -> None:
        self._token = _inside.set(True)

    def __exit__(self, *_: object) -> None:
        # A coroutine that is thrown away ends in another context, in which it was never set.
        with contextlib.suppress(ValueError):
            _inside.reset(self._token)


def _arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    try:
        resolved = [decode(arg, raw=options.raw, dir=options.dir) for arg in args]
        named = {k: decode(v, raw=options.raw, dir=options.dir) for k, v in kwargs.items()}
    except ShmError as error:
        raise ArgumentsNotResolvedError(f"{UNRESOLVED} {error.code}: {error}") from error
    return tuple(resolved), named


def _finished(result: Any, options: Options) -> Any:
    """What a function answered, which may be anything that runs later."""
    if isinstance(result, AsyncIterator):
        return _stream_async(result, options)
    if isinstance(result, Iterator):
        return _stream(result, options)
    if inspect.isawaitable(result):
        return _awaited(result, options)
    return _encoded(result, options)


def _encoded(result: Any, options: Options) -> Any:
    sharer = share_for_good(options.namespace, options.dir)
    return Encoder(sharer, options.threshold, options.dir).encode(result)


async def _awaited(result: Any, options: Options) -> Any:
    with _in_tool():
        value = await result
    return _finished(value, options)


# -- streams ---------------------------------------------------------------------------------------


def _stream(items: Any, options: Options) -> Generator[Any, None, Any]:
    window = Window(options.flow, options.dir)
    try:
        while True:
            try:
                with _in_tool():
                    item = next(items)
            except StopIteration as end:
                window.leave()
                return end.value
            # Made, and not shared yet: the end of a stream waits for nobody.
            window.wait()
            yield _chunk(item, window, options)
    finally:
        try:
            if hasattr(items, "close"):  # a generator
                items.close()
        finally:
            # After a good end there is nothing left to drop.
            window.drop()


async def _stream_async(items: Any, options: Options) -> AsyncGenerator[Any, None]:
    window = Window(options.flow, options.dir)
    try:
        while True:
            try:
                with _in_tool():
                    item = await anext(items)
            except StopAsyncIteration:
                window.leave()
                return
            await window.wait_async()
            yield _chunk(item, window, options)
    finally:
        try:
            if hasattr(items, "aclose"):
                await items.aclose()
        finally:
            window.drop()


def _chunk(item: Any, window: Window, options: Options) -> Any:
    stay(options.namespace, options.dir)
    encoder = Encoder(
        lambda value: share(value, namespace=options.namespace, dir=options.dir),
        options.threshold,
        options.dir,
        wrap=CHUNK,
    )
    # Snakepit's StreamChunk, or what else has its attributes: it is not imported.
    wrapped = hasattr(item, "data") and hasattr(item, "is_final")
    encoded = encoder.encode(item.data if wrapped else item)
    # Into an object Snakepit puts keys of its own; what is none goes under this one, as there.
    if isinstance(encoded, dict) and special(encoded) is not None:
        encoded = {"data": encoded}
    window.add(encoder.shared)
    return _with_data(item, encoded) if wrapped else encoded


def _with_data(item: Any, data: Any) -> Any:
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return dataclasses.replace(item, data=data)
    changed = copy.copy(item)
    changed.data = data
    return changed


# -- adapters --------------------------------------------------------------------------------------


class SharedMemoryAdapter:
    """A mix-in for Snakepit's `BaseAdapter`; to be named before it.

    ``execute_tool`` and ``call_tool`` of the class, its own or inherited, resolve what they are
    given and share what they answer, whatever the tool is. Where the class has no ``execute_tool``
    it gets one that calls ``call_tool``. Nothing is kept in the instance, which may live for one
    request or serve several threads.
    """

    shared_memory: Options = Options()
    """How values travel; set it in the class body."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for name in ("call_tool", "execute_tool"):
            # The method itself and not one of ours around it, so that it stays a coroutine function
            # where it is one.
            found = (vars(base)[name] for base in cls.__mro__ if name in vars(base))
            theirs = [method for method in found if method is not SharedMemoryAdapter.execute_tool]
            method = theirs[0] if theirs else getattr(cls, name, None)
            if method is not None:
                # One that calls another, by super() or by self, is inside then.
                setattr(cls, name, _decorate(method, cls.shared_memory))

    def execute_tool(self, tool_name: str, arguments: Mapping[str, Any], context: Any) -> Any:
        """Call a tool by its name, for adapters that have no way of their own."""
        del context  # what the tool is to know of it, its adapter keeps
        adapter: Any = self
        return adapter.call_tool(tool_name, **arguments)
