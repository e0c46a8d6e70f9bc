"""Faults that take several steps: a damaged segment, a lost .meta, all processes killed at once.

An episode is a generator: it yields while it waits for something, and the main loop resumes it; so
nothing here blocks, and nothing waits for a fixed time.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .clock import CLOCK
from .fleet import Child

if TYPE_CHECKING:
    from .run import Run

PATIENCE = 20.0
DAMAGES = ("cut to nothing", "cut in half", "header", "publish word", "reader table", "everything")
_NAMED = {"corrupted", "truncated", "version_conflict", "torn", "empty", "closed", "sealed"}


class Impatient(Exception):
    """Something did not come about in time."""


def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> Iterator[None]:
    """Yields until a condition holds."""
    deadline = CLOCK.now() + patience
    while not condition():
        if CLOCK.now() > deadline:
            raise Impatient(what)
        yield


def answered(child: Child, *answers: str) -> bool:
    """Whether a victim's user has given one of these answers; any bad one, when none are named."""
    given = [line.get("answer") for line in child.lines]
    return any(a in answers for a in given) if answers else any(a in _NAMED for a in given)


def users_of(run: Run, name: str, languages: Sequence[str]) -> Iterator[list[Child]]:
    """Starts a writer and readers of a segment, waits until all of them use it."""
    yield from until(lambda: not run.arena.filler.exists(), "the file system stays full")
    place = [run.namespace, str(run.arena.dir)]
    args = ["victim", *place, name]
    writer = run.start("victim", "rust", [*args, "write"], json=True, killable=False)
    yield from until(lambda: answered(writer, "ok") or not writer.alive, f"{name} has no writer")
    users = [writer]
    for language in languages:
        if language == "rust":
            start = [*args, "read"]
        else:
            start = [{"python": "chaos.victim", "elixir": "victim"}[language], *place, name]
        users.append(run.start("victim", language, start, json=True, killable=False))
    yield from until(
        lambda: all(answered(u, "ok") or not u.alive for u in users), f"{name} is not read"
    )
    run.last_users = users


def end_of(run: Run, users: list[Child], what: str) -> Iterator[None]:
    """Asks users to end, and waits until they have, as they should."""
    for user in users:
        user.ask_to_end()
    yield from until(lambda: all(not u.alive for u in users), f"{what}: its users do not end")
    for user in users:
        code = user.process.returncode
        run.verdict.check("damaged", code == 0, f"{what}: a {user.language} user ended with {code}")


def files_of(run: Run, name: str) -> list[Path]:
    """The segment files of a name."""
    found = run.arena.dir.glob(f"{run.namespace}_*_{name}_*")
    return [f for f in found if f.suffix != ".meta"]


def damage(run: Run, rng: random.Random, number: int, kind: str) -> Iterator[None]:
    """Cuts or scribbles on a segment in use."""
    name = f"victim-{number}"
    yield from users_of(run, name, list(run.crew))
    users = run.last_users
    found = files_of(run, name)
    if len(found) != 1:
        raise Impatient(f"{name} has the files {found}")
    path = found[0]
    size = path.stat().st_size
    run.act(f"{kind}: {name}")
    places = {
        "header": (0, 64),
        "publish word": (64, 8),
        "reader table": (4096, 4096),
        "everything": (0, size),
    }
    if kind.startswith("cut"):
        os.truncate(path, 0 if kind == "cut to nothing" else size // 8192 * 4096)
    else:
        at, length = places[kind]
        with path.open("r+b") as file:
            file.seek(at)
            file.write(rng.randbytes(length))
    if kind.startswith("cut") or kind == "everything":
        yield from until(
            lambda: all(answered(u) or not u.alive for u in users[1:]),
            f"{kind} {name}: a reader has not noticed",
        )
        told = [[line.get("answer") for line in u.lines] for u in users]
        run.verdict.check("damaged", all(u.alive for u in users), f"{kind}: {told}")
    yield from clean_up(run, kind)
    yield from end_of(run, users, kind)
    for user in users:
        damaged = [x for x in user.lines if x.get("answer") == "damaged value"]
        run.verdict.check("damaged", not damaged, f"{kind}: {user.language} read a damaged value")
    # It may look like a crashed writer's now, and then has its grace.
    deadline = CLOCK.now() + PATIENCE
    while files_of(run, name):
        if CLOCK.now() > deadline:
            raise Impatient(f"{kind}: {name} is not removed")
        yield from clean_up(run, kind)


def clean_up(run: Run, what: str) -> Iterator[None]:
    """One process cleans up, damaged segments too."""
    place = [run.namespace, str(run.arena.dir)]
    args = ["cleaner", *place, "3", "500", "purge"]
    cleaner = run.start("cleaner", "rust", args, json=True, killable=False)
    yield from until(lambda: not cleaner.alive, f"{what}: cleanup does not end")


def lose_meta(run: Run, number: int) -> Iterator[None]:
    """Deletes the .meta of a segment in use: the reaper finds it again."""
    name = f"lost-{number}"
    yield from users_of(run, name, ["rust"])
    users = run.last_users
    meta = run.arena.dir / f"{run.namespace}_{name}.meta"
    meta.unlink()
    run.act(f"deleted the .meta of {name}")
    lost = time.monotonic_ns()
    yield from until(meta.exists, f"the .meta of {name} was not found again")
    took = (time.monotonic_ns() - lost) / 1e9
    run.verdict.check("found-again", True, f"after {took:.2f} s")
    args = ["victim", run.namespace, str(run.arena.dir), name, "read"]
    late = run.start("victim", "rust", args, json=True, killable=False)
    yield from until(lambda: answered(late, "ok") or not late.alive, f"{name} cannot be attached")
    run.verdict.check("found-again", answered(late, "ok"), f"{name} cannot be attached")
    yield from end_of(run, [late, *reversed(users)], name)
    yield from until(lambda: not files_of(run, name), f"{name} was not removed")


def storm(run: Run, seed: int) -> Iterator[None]:
    """Kills all processes of a namespace at once; one cleanup by a newcomer leaves nothing."""
    yield from until(lambda: not run.arena.filler.exists(), "the file system stays full")
    folder = run.arena.storm_dir
    args = ["storm", str(folder), "{uid}", str(seed), "300"]
    peers = [
        run.start("storm", "rust", ["peer", *args], json=False, killable=False) for _ in range(3)
    ]
    peers.append(run.start("storm", "python", ["chaos.peer", *args], json=False, killable=False))
    busy = lambda: run.storm_claims >= 4 and len(os.listdir(folder)) > 4  # noqa: E731
    run.storm_claims = 0
    yield from until(busy, "the storm does not get up")
    run.act(f"killed all {len(peers)} processes of a namespace at once")
    for peer in peers:
        peer.send(signal.SIGKILL)
    yield from until(lambda: all(not p.alive for p in peers), "the killed do not end")
    before = run.arena.leftovers(folder)
    cleaner = ["cleaner", "storm", str(folder), "1", "0", "keep"]
    look = run.start("cleaner", "rust", cleaner, json=True, killable=False)
    yield from until(lambda: not look.alive, "cleanup does not end")
    left = run.arena.leftovers(folder)
    run.verdict.check("storm", not left, f"of {before} it left {left}")
    for file in left:  # so that the next storm is judged by itself
        (folder / file).unlink(missing_ok=True)
