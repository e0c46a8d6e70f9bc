"""The processes that the harness starts; only these are ever signalled, by pid."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .records import SIZE, Record, parse

ROOT = Path(__file__).resolve().parents[3]
CHAOS = ROOT / "test" / "chaos"
_F_SETPIPE_SZ = 1031


@dataclass
class Child:
    """A process, what it was sent, and what it said. Times are CLOCK_MONOTONIC nanoseconds."""

    uid: int
    role: str
    language: str
    process: subprocess.Popen[bytes]
    started: int
    speaks_json: bool
    killable: bool
    killed: int | None = None
    """Before the signal that ends it was sent."""
    reaped: int | None = None
    sent: set[int] = field(default_factory=set)
    stopped: bool = False
    asked_to_end: bool = False
    heard: int = 0
    buffer: bytearray = field(default_factory=bytearray)
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """Its process id; it is ours until it was waited for."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not been waited for yet."""
        return self.reaped is None

    def send(self, number: int) -> None:
        """Sends a signal, and notes it first."""
        if not self.alive:
            return
        self.sent.add(number)
        if number in (signal.SIGKILL, signal.SIGTERM) and self.killed is None:
            self.killed = time.monotonic_ns()
        # The pid is not free before we wait for it, so this is our child or its zombie.
        os.kill(self.pid, number)

    def ask_to_end(self) -> None:
        """Closes its stdin, upon which it gives everything back and exits with 0."""
        self.asked_to_end = True
        if self.process.stdin and not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def drain(self) -> tuple[list[Record], list[dict[str, Any]]]:
        """All that it has said since."""
        assert self.process.stdout is not None
        while True:
            try:
                data = os.read(self.process.stdout.fileno(), 1 << 18)
            except BlockingIOError:
                break
            if not data:
                break
            self.buffer += data
            self.heard = time.monotonic_ns()
        if self.speaks_json:
            *whole, rest = bytes(self.buffer).split(b"\n")
            self.buffer = bytearray(rest)
            lines = [json.loads(line) for line in whole if line.strip()]
            self.lines += lines[-200:] if self.role != "overseer" else []
            return [], lines
        whole_len = len(self.buffer) // SIZE * SIZE
        data = bytes(self.buffer[:whole_len])
        del self.buffer[:whole_len]
        return parse(data), []


class Fleet:
    """Starts, reads and reaps children."""

    def __init__(self, peer: Path, elixir_ebin: Path | None, errors: IO[bytes]) -> None:
        self.peer = peer
        self.elixir_ebin = elixir_ebin
        self.errors = errors
        self.children: list[Child] = []
        self.next_uid = 1
        self.spawned = 0

    def command(self, language: str) -> list[str]:
        """How the program of a language is started."""
        if language == "rust":
            return [str(self.peer)]
        if language == "python":
            return [sys.executable, "-m"]
        return ["elixir", "-pa", str(self.elixir_ebin)]

    def start(
        self, role: str, language: str, args: list[str], *, json: bool, killable: bool = True
    ) -> Child:
        """Starts a process; `{uid}` in `args` becomes its number."""
        uid = self.next_uid
        self.next_uid += 1
        self.spawned += 1
        filled = [a.replace("{uid}", str(uid)) for a in args]
        if language == "elixir":
            filled[0] = str(CHAOS / "elixir" / f"{filled[0]}.exs")
        environment = {**os.environ, "PYTHONPATH": str(CHAOS), "ERL_CRASH_DUMP_SECONDS": "0"}
        process = subprocess.Popen(
            [*self.command(language), *filled],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            cwd=ROOT,
        )
        assert process.stdout is not None
        out = process.stdout.fileno()
        os.set_blocking(out, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(out, _F_SETPIPE_SZ, 1 << 20)
        now = time.monotonic_ns()
        child = Child(uid, role, language, process, now, json, killable, heard=now)
        self.children.append(child)
        return child

    def reap(self) -> list[Child]:
        """Children that have ended since; what they said last is still in their pipe."""
        ended = []
        for child in self.children:
            if child.process.poll() is not None:
                child.reaped = time.monotonic_ns()
                if child.killed is None:
                    child.killed = child.reaped
                ended.append(child)
        self.children = [c for c in self.children if c.alive]
        return ended

    @staticmethod
    def close(child: Child) -> None:
        """Lets go of the pipes of a child that has been reaped and drained."""
        for pipe in (child.process.stdin, child.process.stdout):
            if pipe and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def of(self, *roles: str) -> list[Child]:
        """Living children of some roles."""
        return [c for c in self.children if c.role in roles]

    def kill_all(self) -> None:
        """Ends every child that is left, and waits for each."""
        for child in self.children:
            child.send(signal.SIGKILL)
        for child in self.children:
            child.process.wait(timeout=30)
            self.close(child)
