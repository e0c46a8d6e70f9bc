"""What `wheel/run.py` and `readme/run.py` share: commands that must succeed, counted checks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

LIMIT_S = 600
"""Seconds after which a command hangs."""


def output(command: list[str], cwd: Path, env: dict[str, str] | None = None) -> str:
    """What a command prints; raises AssertionError with it when the command fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode} of {command}\n{done.stdout}"
    return done.stdout


class Checks:
    """Runs checks, says of each what became of it, and counts."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def check(self, name: str, call: Callable[[], object]) -> None:
        """Run one; it fails by an AssertionError, or because a command hangs."""
        try:
            call()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            self.failed += 1
            print(f"FAILED: {name}: {error}", flush=True)
        else:
            self.passed += 1
            print(f"ok: {name}", flush=True)

    def end(self) -> int:
        """Say how many passed; the exit status."""
        failed = f", {self.failed} failed" if self.failed else ""
        print(f"{self.passed} passed{failed}")
        return 1 if self.failed else 0
