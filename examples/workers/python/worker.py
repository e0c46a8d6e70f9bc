"""A worker: reads requests from its standard input, calls tools, writes answers.

What Snakepit's server does with an adapter, reduced to what this example needs: a new instance for
each request, arguments and results as JSON, chunks of generators one by one. A message has its
length before it, four bytes, big-endian, and a letter for its kind: J for JSON, R for bytes as
they are, C for a chunk, H for "ready", Q for the end.
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import os
import sys
import traceback
from typing import Any, BinaryIO

import tools
from snakepit_shm.snakepit import ArgumentsNotResolvedError


class Pipe:
    """Framed messages on two descriptors."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self.source = source
        self.sink = sink

    def read(self) -> tuple[bytes, str, bytearray] | None:
        """Kind, tool and body of the next message; none when the other side has closed.

        The body has memory of its own, aligned as arrays and tables need it.
        """
        try:
            size = int.from_bytes(self._exactly(4), "big") - 1
            kind, tool = bytes(self._exactly(1)), ""
            if kind == b"R":
                length = self._exactly(1)[0]
                tool = self._exactly(length).decode()
                size -= 1 + length
            return kind, tool, self._exactly(size)
        except EOFError:
            return None

    def _exactly(self, size: int) -> bytearray:
        found = bytearray(size)
        room = memoryview(found)
        while room:
            got = self.source.readinto(room)  # type: ignore[attr-defined]
            if not got:
                raise EOFError
            room = room[got:]
        return found

    def write(self, kind: bytes, *parts: Any) -> None:
        views = [memoryview(part).cast("B") for part in parts]
        self.sink.write((1 + sum(view.nbytes for view in views)).to_bytes(4, "big") + kind)
        for view in views:
            self.sink.write(view)
        self.sink.flush()


def answer(pipe: Pipe, kind: bytes, tool: str, body: bytearray) -> None:
    if kind == b"R":
        pipe.write(b"R", tools.RAW[tool](memoryview(body)))
        return
    request = json.loads(body)
    arguments = request["args"]
    arguments.update({k: base64.b64decode(v) for k, v in request["binary"].items()})
    result = tools.Tools().execute_tool(
        tool_name=request["tool"], arguments=arguments, context=None
    )
    if not request["stream"]:
        pipe.write(b"J", json.dumps({"ok": result}).encode())
        return
    if not inspect.isgenerator(result):
        raise TypeError(f"{request['tool']} is no stream")
    for chunk in result:
        pipe.write(b"C", json.dumps(chunk).encode())
    pipe.write(b"J", b'{"ok": null}')


def main() -> None:
    pipe = Pipe(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    # What a tool prints must not get between the messages.
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    # Whoever started us may have gone: then there is nobody to tell.
    with contextlib.suppress(BrokenPipeError):
        pipe.write(b"H")
        while (message := pipe.read()) is not None and message[0] != b"Q":
            serve(pipe, *message)


def serve(pipe: Pipe, kind: bytes, tool: str, body: bytearray) -> None:
    try:
        answer(pipe, kind, tool, body)
    except BrokenPipeError:
        raise
    except Exception as error:
        if not isinstance(error, tools.Refused | ArgumentsNotResolvedError):
            traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        pipe.write(b"J", json.dumps({"error": text}).encode())


if __name__ == "__main__":
    main()
