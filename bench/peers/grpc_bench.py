"""gRPC messages of bytes between two Python processes, beside two of our segments.

The bytes are the message: no Protobuf around them, and no limit on their length but gRPC's own,
2 GiB. Over a Unix socket and over loopback.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import snakepit_shm
from figures import SIZES, Figures, alternate, samples_for, two_cpus

DIRECTORY = os.environ.get("SNAKEPIT_BENCH_DIR", "/dev/shm")
WHERE = {"namespace": "bench", "dir": DIRECTORY}
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
ACK = b"12345678"


def room(size: int) -> int:
    """A valid capacity."""
    return max(4096, (size + 4095) // 4096 * 4096)


def serve() -> None:
    """The other process: answers calls until its input ends."""
    os.sched_setaffinity(0, {two_cpus()[1]})
    handlers = {
        "echo": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
        "take": grpc.unary_unary_rpc_method_handler(lambda _request, _: ACK),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", handlers),))
    server.add_insecure_port(f"unix:{DIRECTORY}/grpc.sock")
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None)


def answer(size: int, back: int) -> None:
    """The other process: hears a value, says one, until the segment is sealed."""
    os.sched_setaffinity(0, {two_cpus()[1]})
    heard = bytearray(size)
    with (
        snakepit_shm.create(f"back-{size}-{back}", room(back), **WHERE) as writer,
        snakepit_shm.attach(f"there-{size}-{back}", **WHERE) as reader,
    ):
        print("ready", flush=True)
        seen = 0
        while True:
            try:
                seen = reader.wait(seen)
            except snakepit_shm.SealedError:
                return
            reader.read_into(heard)
            writer.write(heard if back == size else ACK)


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """The other process, and the first thing it says."""
    child = subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    line = child.stdout.readline().strip()
    if not line:
        child.wait()
        raise RuntimeError("the other process ended; its message is above")
    return child, line


def measure(figures: Figures, channels: dict[str, Any], size: int) -> None:
    """There and back, and there with a word back."""
    data = os.urandom(min(size, 1 << 20)) * max(1, size >> 20)
    for what, name, back in (
        ("round-trip", "there and back", size),
        ("one-way", "there, and 8 bytes back", len(ACK)),
    ):
        method = "/bench/echo" if what == "round-trip" else "/bench/take"
        calls = {peer: channel.unary_unary(method) for peer, channel in channels.items()}
        answered = bytearray(max(back, 8))
        with snakepit_shm.create(f"there-{size}-{back}", room(size), **WHERE) as writer:
            child, _ = start("--answer", str(size), str(back))
            try:
                with snakepit_shm.attach(f"back-{size}-{back}", **WHERE) as reader:
                    seen = 0

                    def ours(reader: Any = reader, answered: bytearray = answered) -> None:
                        nonlocal seen
                        writer.write(data)
                        seen = reader.wait(seen)
                        reader.read_into(answered)

                    ours()
                    if what == "round-trip":
                        assert answered == data
                        assert all(call(data) == data for call in calls.values())
                    timed = [ours, *(lambda call=call: call(data) for call in calls.values())]
                    rounds = alternate(timed, samples_for(size), 20e6)
                    writer.seal()
                    for which, peer in enumerate(calls, 1):
                        pairs = [(taken[0], taken[which]) for taken in rounds]
                        figures.add(what, f"{name}, Python", size, peer, pairs)
            finally:
                if child.stdin:
                    child.stdin.close()
                if child.wait():
                    raise RuntimeError("the one who answers failed")


def main() -> None:
    """Either side."""
    if "--serve" in sys.argv:
        serve()
        return
    if "--answer" in sys.argv:
        size, back = sys.argv[sys.argv.index("--answer") + 1 :][:2]
        answer(int(size), int(back))
        return
    os.sched_setaffinity(0, {two_cpus()[0]})
    figures = Figures("grpc")
    server, port = start("--serve")
    channels = {
        "grpc-unix": grpc.insecure_channel(f"unix:{DIRECTORY}/grpc.sock", OPTIONS),
        "grpc-loopback": grpc.insecure_channel(f"127.0.0.1:{port}", OPTIONS),
    }
    try:
        for size in SIZES:
            measure(figures, channels, size)
    finally:
        for channel in channels.values():
            channel.close()
        if server.stdin:
            server.stdin.close()
        server.wait()
        Path(DIRECTORY, "grpc.sock").unlink(missing_ok=True)
        figures.save()


if __name__ == "__main__":
    main()
