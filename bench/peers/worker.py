"""The Python side of the section `workers`: answers on a pipe, lengths before the messages.

A message that begins with ``R`` is bytes, of which a copy comes back; one that begins with ``J`` is
a request in JSON. `grpc` and `pickle` are timed here, between this process and another one.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any, BinaryIO

import grpc
import numpy as np
import snakepit_shm

WHERE = {"namespace": "bench", "dir": os.environ["SNAKEPIT_BENCH_PLACE"]}
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def bare(_request: dict[str, Any]) -> dict[str, Any]:
    """Nothing but the message."""
    return {"ok": True}


def copy(request: dict[str, Any]) -> dict[str, Any]:
    """The value as it lies, and a copy of it as the result, given away."""
    array = snakepit_shm.resolve(request["handle"], dir=WHERE["dir"])
    return {"handle": snakepit_shm.share(array, transfer=True, **WHERE)}


def fill(request: dict[str, Any]) -> dict[str, Any]:
    """The value as it lies, and a copy of it in the region that the caller lends."""
    array = snakepit_shm.resolve(request["handle"], dir=WHERE["dir"])
    borrowed = snakepit_shm.borrow(request["loan"], dir=WHERE["dir"])
    with borrowed as result:
        result[:] = array
    return {"handle": borrowed.handle}


made: list[np.ndarray[Any, Any]] = []


def make(request: dict[str, Any]) -> dict[str, Any]:
    """A result that is filled where it lies, before anybody asks for it."""
    array = snakepit_shm.empty(request["size"], "u1", **WHERE)
    array[:] = 7
    made.append(array)
    return {"ok": True}


def place(request: dict[str, Any]) -> dict[str, Any]:
    """The value as it lies, looked at; the result, which lies in shared memory already."""
    array = snakepit_shm.resolve(request["handle"], dir=WHERE["dir"])
    seen = [int(array[0]), int(array[-1])]
    del array
    handle = snakepit_shm.share(made.pop(), transfer=True, copy=False, **WHERE)
    return {"handle": handle, "seen": seen}


kept: list[dict[str, Any]] = []


def keep(request: dict[str, Any]) -> dict[str, Any]:
    """As `place`, but the result stays this process's, for as long as it likes."""
    array = snakepit_shm.resolve(request["handle"], dir=WHERE["dir"])
    seen = [int(array[0]), int(array[-1])]
    del array
    kept.append(snakepit_shm.share(made.pop(), copy=False, **WHERE))
    return {"handle": kept[-1], "seen": seen}


def release(_request: dict[str, Any]) -> dict[str, Any]:
    """What was kept goes."""
    while kept:
        snakepit_shm.release(kept.pop(), dir=WHERE["dir"])
    return {"ok": True}


def serve_grpc(address: str, ready: Any) -> None:
    """Another process: answers a message with the same bytes."""
    handlers = {"echo": grpc.unary_unary_rpc_method_handler(lambda request, _: request)}
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    server.add_insecure_port(address)
    server.start()
    ready.send(True)
    server.wait_for_termination()


def serve_pickle(line: Any) -> None:
    """Another process: answers an array with a copy of it."""
    while True:
        line.send(line.recv().copy())


class Others:
    """What others have to bring an array from one Python process to another and back."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        address = f"unix:{self.folder.name}/grpc.sock"
        said, ready = spawn.Pipe(duplex=False)
        here, there = spawn.Pipe()
        self.processes = [
            spawn.Process(target=serve_grpc, args=(address, ready), daemon=True),
            spawn.Process(target=serve_pickle, args=(there,), daemon=True),
        ]
        for process in self.processes:
            process.start()
        said.recv()
        channel = grpc.insecure_channel(address, OPTIONS)
        call = channel.unary_unary("/bench/echo")
        self.ways: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
            "grpc": lambda array: np.frombuffer(call(array.tobytes()), "u1"),
            "pickle": lambda array: (here.send(array), here.recv())[1],
        }

    def time(self, way: str, array: np.ndarray[Any, Any]) -> int:
        """Nanoseconds of one round trip."""
        start = time.perf_counter_ns()
        back = self.ways[way](array)
        took = time.perf_counter_ns() - start
        assert back.nbytes == array.nbytes and back[-1] == array[-1]
        return took


def main() -> None:
    """Answers until its input ends."""
    others: list[Others] = []
    array = np.zeros(1, "u1")

    def timed(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal array
        if not others:
            others.append(Others())
        if array.nbytes != request["size"]:
            array = np.full(request["size"], 7, "u1")
        return {"ns": others[0].time(request["way"], array)}

    ours = [bare, copy, fill, make, place, keep, release]
    answers = {answer.__name__: answer for answer in ours}
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(4):
        message = bytearray(struct.unpack(">I", head)[0])
        read_all(source, memoryview(message))
        if message[:1] == b"R":
            answer = bytes(message)
        else:
            request = json.loads(message[1:])
            answer = json.dumps((answers | {"timed": timed})[request["op"]](request)).encode()
        size = struct.pack(">I", len(answer))
        if message[:1] == b"R":
            sink.write(size)
            sink.write(answer)
        else:
            sink.write(size + answer)  # at once, buffered or not
        sink.flush()


def read_all(source: BinaryIO, into: memoryview) -> None:
    """As many bytes as there is room for."""
    while into:
        taken = source.readinto(into)  # type: ignore[attr-defined]
        if not taken:
            sys.exit("the input ended in the middle of a message")
        into = into[taken:]


if __name__ == "__main__":
    main()
