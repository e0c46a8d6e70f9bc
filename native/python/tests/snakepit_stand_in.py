"""A stand-in for Snakepit's Python package, which is not on PyPI, with the interfaces used here.

They are those of Snakepit 0.13, written anew from its documentation: `tool`, `BaseAdapter`,
`StreamChunk`, `ZeroCopyRef`, and of ``grpc_server.py`` what it does with an adapter: a new instance
for each request, arguments and results as JSON, coroutines awaited, streams iterated.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable
from typing import Any


class ToolMetadata:
    def __init__(self, description: str, supports_streaming: bool) -> None:
        self.description = description
        self.supports_streaming = supports_streaming


def tool(description: str = "", supports_streaming: bool = False) -> Callable[[Any], Any]:
    def decorator(function: Any) -> Any:
        function._tool_metadata = ToolMetadata(description, supports_streaming)
        return function

    return decorator


class StreamChunk:
    def __init__(self, data: Any, is_final: bool = False) -> None:
        self.data = data
        self.is_final = is_final


class ZeroCopyRef:
    def __init__(self, payload: dict[str, Any]) -> None:
        self.payload = payload
        self.metadata = payload.get("metadata", {})


class BaseAdapter:
    def __init__(self) -> None:
        self.session_context: Any = None

    def set_session_context(self, context: Any) -> None:
        self.session_context = context

    def get_tools(self) -> dict[str, tuple[str, list[str]]]:
        """Name, description and parameters of each tool."""
        found = inspect.getmembers(self, inspect.ismethod)
        return {
            name: (method._tool_metadata.description, list(inspect.signature(method).parameters))
            for name, method in found
            if hasattr(method, "_tool_metadata")
        }

    def call_tool(self, tool_name: str, **kwargs: Any) -> Any:
        if not hasattr(self, tool_name):
            raise AttributeError(f"Tool {tool_name!r} not found")
        return getattr(self, tool_name)(**kwargs)


def request(adapter_class: type[Any], name: str, arguments: dict[str, Any]) -> Any:
    """One call, as the server does it; returns what the caller decodes from JSON."""
    return asyncio.run(_request(adapter_class, name, json.loads(json.dumps(arguments))))


async def _prepared(adapter_class: type[Any]) -> Any:
    adapter = adapter_class()
    adapter.set_session_context("context")
    if hasattr(adapter, "initialize"):
        initialized = adapter.initialize()
        if inspect.isawaitable(initialized):
            await initialized
    return adapter


async def _execute(adapter: Any, name: str, arguments: dict[str, Any]) -> Any:
    keywords = {"tool_name": name, "arguments": arguments, "context": "context"}
    if inspect.iscoroutinefunction(adapter.execute_tool):
        return await adapter.execute_tool(**keywords)
    result = await asyncio.to_thread(adapter.execute_tool, **keywords)
    return await result if inspect.iscoroutine(result) else result


async def _request(adapter_class: type[Any], name: str, arguments: dict[str, Any]) -> Any:
    result = await _execute(await _prepared(adapter_class), name, arguments)
    return json.loads(json.dumps(result))


def stream(
    adapter_class: type[Any],
    name: str,
    arguments: dict[str, Any],
    take: Callable[[Any], Any],
) -> None:
    """One streamed call; `take` gets each chunk, decoded from JSON."""
    asyncio.run(_stream(adapter_class, name, json.loads(json.dumps(arguments)), take))


async def _stream(
    adapter_class: type[Any], name: str, arguments: dict[str, Any], take: Callable[[Any], Any]
) -> None:
    items = await _execute(await _prepared(adapter_class), name, arguments)

    async def send(item: Any) -> None:
        data = item.data if isinstance(item, StreamChunk) else item
        await asyncio.to_thread(take, json.loads(json.dumps(data)))

    if hasattr(items, "__aiter__"):
        async for item in items:
            await send(item)
    else:
        end = object()
        while (item := await asyncio.to_thread(next, items, end)) is not end:
            await send(item)
