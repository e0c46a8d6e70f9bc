"""Fixtures: every test has a namespace and a directory of its own, and leaves nothing in it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import snakepit_shm
from snakepit_shm import _snakepit_member

PATIENCE = 60.0
"""Seconds after which a condition that must come true counts as never coming true."""


def until(condition: Callable[[], Any], what: str = "condition", patience: float = PATIENCE) -> Any:
    """Wait for `condition` to be true; return its value."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.002)
    return value


@dataclass(frozen=True)
class Place:
    """A namespace in a directory of its own."""

    namespace: str
    dir: Path

    @property
    def where(self) -> dict[str, Any]:
        """The keyword arguments that name the place."""
        return {"namespace": self.namespace, "dir": self.dir}

    def create(self, name: str = "it", size: int = 4096, **options: Any) -> snakepit_shm.Writer:
        return snakepit_shm.create(name, size, **self.where, **options)

    def attach(self, name: str = "it", **options: Any) -> snakepit_shm.Reader:
        return snakepit_shm.attach(name, **self.where, **options)

    def attach_writer(self, name: str = "it") -> snakepit_shm.Writer:
        return snakepit_shm.attach_writer(name, **self.where)

    def share(self, obj: Any, **options: Any) -> dict[str, Any]:
        return snakepit_shm.share(obj, **self.where, **options)

    def resolve(self, handle: Any, **options: Any) -> Any:
        return snakepit_shm.resolve(handle, dir=self.dir, **options)

    def release(self, handle: Any) -> None:
        snakepit_shm.release(handle, dir=self.dir)

    def files(self) -> list[str]:
        """What lies in the directory, the participants table and the pool's files apart."""
        apart = (f"{self.namespace}.participants", f"{self.namespace}.pool.")
        return sorted(e for e in os.listdir(self.dir) if not e.startswith(apart))

    def pool_files(self) -> list[str]:
        """What this process's pool and those of others keep."""
        return [e for e in os.listdir(self.dir) if e.startswith(f"{self.namespace}.pool.")]

    def sweep(self) -> None:
        """Remove what processes that ended in the middle of things left, as the next start does."""
        for info in snakepit_shm.list_segments(**self.where):
            snakepit_shm.remove(info.name, **self.where)
        self.create("sweep").close()  # the last one to leave takes the participants table along

    def segment_file(self) -> Path:
        """The file of the only segment."""
        (file,) = (f for f in self.files() if not f.endswith(".meta"))
        return self.dir / file

    def env(self) -> dict[str, str]:
        """An environment in which this place is the default one."""
        return {
            **os.environ,
            "SNAKEPIT_SHM_NAMESPACE": self.namespace,
            "SNAKEPIT_SHM_DIR": str(self.dir),
        }

    def start(self, script: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start another Python process; warnings are errors there too."""
        return subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-X",
                "faulthandler",
                "-c",
                textwrap.dedent(script),
                *arguments,
            ],
            env=self.env(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, script: str, *arguments: str) -> str:
        """Run a script in another process; return what it prints. It must end well."""
        process = self.start(script, *arguments)
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"exit {process.returncode}\n{out}\n{err}"
        assert err == ""
        return out


@pytest.fixture
def place() -> Iterator[Place]:
    root = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    unique = uuid.uuid4().hex[:12]
    directory = Path(tempfile.mkdtemp(prefix=f"snakepit-pytest-{unique}-", dir=root))
    yield Place(f"pytest-{unique}", directory)
    if os.listdir(directory):
        gc.collect()
        snakepit_shm.drain_pool(namespace=f"pytest-{unique}", dir=directory)
    # Other processes and the thread that unmaps may still be on their way out.
    left: list[str] = []
    try:
        until(lambda: not os.listdir(directory), "an empty directory", 10)
    except AssertionError:
        left = os.listdir(directory)
        for entry in left:
            (directory / entry).unlink()
    directory.rmdir()
    assert left == []


@pytest.fixture
def leave(place: Place) -> Iterator[None]:  # noqa: ARG001 - before the place is looked at
    """A worker stays in its namespace; a test's place has to be empty at its end."""
    yield
    _snakepit_member.leave_all()


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to be ended after the test, whatever becomes of it."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
