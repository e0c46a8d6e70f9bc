"""Runs the examples of a README: each block alone, or the files of a group beside one another.

A block that begins with a comment like ``# sensor.py`` is that file. Such blocks that follow one
another up to the next heading or plain block belong together: they are started in order, the next
when the one before has printed its first line. The last ends by itself; then the others get a line
on stdin, and Ctrl-C.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

PATIENCE = 120.0
"""Seconds that an example may take."""

Group = dict[str, str]
"""The files of an example by their names."""


def groups(markdown: str) -> list[Group]:
    """The Python examples of a page, in order."""
    found: list[Group] = []
    part = re.compile(r"^(## [^\n]*)$|^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    together = False
    for match in part.finditer(markdown):
        if match[1]:
            together = False
            continue
        named = re.match(r"# (\w+\.py)\n", match[2])
        if named and together:
            found[-1][named[1]] = match[2]
        else:
            found.append({named[1] if named else "example.py": match[2]})
        together = named is not None
    return found


def needs(group: Group, module: str) -> bool:
    """Whether an example imports a module."""
    return any(re.search(rf"^import {module}\b", text, re.MULTILINE) for text in group.values())


def title(group: Group) -> str:
    """What a group is called in a list of tests."""
    *_, text = group.values()
    return "+".join(group) if len(group) > 1 else text.splitlines()[-1][:40]


def run(group: Group, folder: Path, python: str, env: Mapping[str, str]) -> None:
    """Run a group in a folder; raises AssertionError with what was printed when it fails."""
    for name, text in group.items():
        (folder / name).write_text(text)
    started: list[subprocess.Popen[str]] = []
    try:
        *first, last = [
            [python, "-W", "error", "-X", "faulthandler", str(folder / name)] for name in group
        ]
        for command in first:
            started.append(_start(command, folder, env))
            stdout = started[-1].stdout
            assert stdout is not None
            assert stdout.readline(), f"{command[-1]} printed nothing: {_end(started[-1])}"
        started.append(_start(last, folder, env))
        _expect_success(started.pop(), last[-1])
        while started:
            process = started.pop()
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
            _expect_success(process, str(process.args))
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _start(command: list[str], folder: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(process: subprocess.Popen[str]) -> str:
    process.kill()
    return "".join(process.communicate())


def _expect_success(process: subprocess.Popen[str], name: str) -> None:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"{name} did not end: {_end(process)}") from None
    assert (process.returncode, err) == (0, ""), f"{name}: exit {process.returncode}\n{out}\n{err}"
