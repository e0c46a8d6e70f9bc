"""A run: the fleet at work, the killer among it, and the judge over both."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import episodes
from .arena import Arena
from .clock import CLOCK
from .fleet import Child, Fleet
from .judge import Judge
from .meters import Meters
from .records import Kind
from .verdict import Verdict

GRACE_MS = 500
HUNG = 30.0
BATCH = 0.05
# How many of each language are at work and may be killed; beside them one of each that lives long.
CREW = {"rust": 4, "python": 3, "elixir": 1}
# The first actions, so that a short run has done each; then they are drawn, by weight.
OPENING = (
    "kill", "stop", "cleanup", "terminate", "fill", "kill", "cut", "lose meta", "storm", "scribble",
    "massacre",
)  # fmt: skip
WEIGHTS = {
    "kill": 36, "stop": 14, "terminate": 10, "cleanup": 9, "fill": 4, "cut": 4, "scribble": 5,
    "lose meta": 4, "storm": 3, "massacre": 2,
}  # fmt: skip


class Run:
    """Everything of one run; `seed` decides what is done, the machine decides when."""

    def __init__(
        self, seed: int, seconds: float, arena: Arena, fleet: Fleet, results: Path, pause_us: int
    ) -> None:
        self.seed, self.seconds, self.arena, self.fleet = seed, seconds, arena, fleet
        self.rng = random.Random(seed)
        self.namespace = "chaos"
        self.verdict = Verdict()
        self.judge = Judge(self.verdict, GRACE_MS, arena.foreign)
        self.meters = Meters()
        self.pause_us = pause_us
        self.began = CLOCK.now()
        self.log = (results / f"chaos-{seed}.actions.log").open("w")
        self.episodes: list[tuple[str, Iterator[None]]] = []
        self.last_users: list[Child] = []
        self.storm_claims = 0
        self.number = 0
        self.timers: list[tuple[float, Any]] = []
        self.due_measure = 0.0
        self.crew = {n: c for n, c in CREW.items() if n != "elixir" or fleet.elixir_ebin}

    # --- telling ---

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return CLOCK.now() - self.began

    def act(self, what: str, *, count: str | None = None) -> None:
        """Logs an action."""
        self.judge.done[f"did: {count or what.split(':')[0].split(' of ')[0]}"] += 1
        print(f"{self.elapsed:9.3f} {what}", file=self.log, flush=True)

    # --- processes ---

    def start(
        self, role: str, language: str, args: list[str], *, json: bool, killable: bool = True
    ) -> Child:
        """Starts a process, see `Fleet.start`."""
        return self.fleet.start(role, language, args, json=json, killable=killable)

    def start_peer(self, language: str, *, killable: bool) -> None:
        """Starts a peer with a seed of its own."""
        seed = str(self.rng.getrandbits(62))
        args = [self.namespace, str(self.arena.dir), "{uid}", seed, str(self.pause_us)]
        first = {"rust": ["peer"], "python": ["chaos.peer"], "elixir": ["peer"]}[language]
        role = "peer" if killable else "long-lived"
        self.start(role, language, first + args, json=False, killable=killable)

    def man(self) -> None:
        """Brings the crew up to strength."""
        for language, wanted in self.crew.items():
            have = sum(c.language == language for c in self.fleet.of("peer"))
            for _ in range(wanted - have):
                self.start_peer(language, killable=True)

    def begin(self) -> None:
        """Starts the overseer, those who live long, and the crew."""
        place = [self.namespace, str(self.arena.dir)]
        overseer = ["overseer", *place, str(GRACE_MS)]
        self.start("overseer", "rust", overseer, json=True, killable=False)
        for language in self.crew:
            self.start_peer(language, killable=False)
        self.man()

    # --- the loop ---

    def tick(self) -> None:
        """Listens, judges, measures."""
        time.sleep(BATCH)  # what has come meanwhile is judged together, which is cheaper
        frozen = CLOCK.tick()
        if frozen is not None:
            self.act(f"nobody ran: for {(frozen[1] - frozen[0]) / 1e9:.1f} s")
            self.judge.delayed(*frozen)
            for child in self.fleet.children:
                child.heard = max(child.heard, frozen[1])
        read_at = time.monotonic_ns()
        # Who has ended is reaped first, so that its last words are in the pipe when it is drained.
        ended = self.fleet.reap()
        for child in [*self.fleet.children, *ended]:
            records, lines = child.drain()
            for record in records:
                if child.role != "storm":
                    self.judge.hear(child, record)
                elif record.kind == Kind.CLAIMED:
                    self.storm_claims += 1
            for line in lines:
                if child.role == "overseer":
                    self.judge.see(line)
        for child in ended:
            self.fleet.close(child)
            self.judge_end(child)
        self.judge.round()
        now = CLOCK.now()
        for timer in [t for t in self.timers if t[0] <= now]:
            self.timers.remove(timer)
            timer[1]()
        self.advance_episodes()
        self.check_hung()
        if now >= self.due_measure:
            self.due_measure = now + max(1.0, self.seconds / 2000)
            for child in self.fleet.of("long-lived", "overseer"):
                self.meters.measure(child, self.elapsed)
            self.verdict.check("foreign", self.arena.foreign_intact(), "a foreign file is damaged")
            self.judge.ledger.forget(read_at)
        for line in self.verdict.fresh_breaks:
            print(line, flush=True)
            print(f"{self.elapsed:9.3f} {line}", file=self.log, flush=True)
        self.verdict.fresh_breaks.clear()

    def judge_end(self, child: Child) -> None:
        """A process ends by what it was sent, or as it was asked."""
        code = child.process.returncode
        held = -code in child.sent if code < 0 else code == 0
        if child.role != "cleaner" and code == 0:
            # On its own account only when it was asked, or told by SIGTERM.
            held = child.asked_to_end or signal.SIGTERM in child.sent
        who = f"a {child.language} {child.role} (uid {child.uid})"
        what = f"{who} ended with {code}, sent {child.sent}"
        self.verdict.check("survives", held, what)
        for line in child.lines:
            self.judge.done["removed by cleaners"] += len(line.get("removed", ()))
            for error in line.get("errors", ()):
                allowed = error["code"] in ("timeout", "resource_exhausted")
                self.verdict.check("named-errors", allowed, f"cleanup: {error}")

    def check_hung(self) -> None:
        """Every peer says something now and then, and ends when it was told to."""
        for child in self.fleet.of("peer", "long-lived", "overseer"):
            silent = (time.monotonic_ns() - child.heard) / 1e9
            if child.stopped or silent < HUNG:
                continue
            what = f"a {child.language} {child.role} (uid {child.uid}) is silent for {silent:.0f} s"
            self.verdict.check("survives", False, what)
            child.send(signal.SIGKILL)

    def advance_episodes(self) -> None:
        """Resumes each episode once."""
        for episode in list(self.episodes):
            name, steps = episode
            try:
                next(steps)
            except StopIteration:
                self.episodes.remove(episode)
            except episodes.Impatient as why:
                self.episodes.remove(episode)
                promise = {"lose meta": "found-again", "storm": "storm"}.get(name, "damaged")
                self.verdict.check(promise, False, str(why))
                for child in self.fleet.of("victim", "storm"):
                    child.send(signal.SIGKILL)

    def act_for(self, seconds: float) -> None:
        """The killer's work: draws and does one action after another."""
        until = CLOCK.now() + seconds
        opening = list(OPENING)
        due = CLOCK.now() + 2.5  # so that there is something to disturb
        while CLOCK.now() < until:
            self.tick()
            self.man()
            if CLOCK.now() < due:
                continue
            if opening:
                action = opening.pop(0)
            else:
                action = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            self.do(action)
            due = CLOCK.now() + self.rng.uniform(0.15, 1.0)

    # --- actions ---

    def do(self, action: str) -> None:
        """One action. What is drawn does not depend on what the processes do."""
        pick, length = self.rng.random(), self.rng.uniform(0.05, 1.5)
        kind, seed = self.rng.randrange(1 << 30), self.rng.getrandbits(62)
        peers = [c for c in self.fleet.of("peer") if not c.stopped]
        child = peers[int(pick * len(peers))] if peers else None
        busy = {name for name, _ in self.episodes}
        if action in ("kill", "terminate", "stop") and child:
            self.signal_one(action, child, length)
        elif action == "massacre":
            self.act(f"massacre of {len(peers)}")
            for peer in self.fleet.of("peer"):
                peer.send(signal.SIGKILL)
        elif action == "cleanup":
            args = [self.namespace, str(self.arena.dir), "5", str(GRACE_MS), "keep"]
            self.act("cleanup from 3 processes at once")
            for _ in range(3):
                self.start("cleaner", "rust", ["cleaner", *args], json=True, killable=False)
        elif action == "fill" and not self.arena.filler.exists() and not self.episodes:
            if self.arena.fill():
                self.act(f"filled the file system: for {length:.2f} s")
                self.timers.append((CLOCK.now() + length, self.arena.free))
        elif action in ("cut", "scribble") and not busy & {"cut", "scribble"}:
            self.number += 1
            kinds = episodes.DAMAGES[:2] if action == "cut" else episodes.DAMAGES[2:]
            rng = random.Random(seed)
            steps = episodes.damage(self, rng, self.number, kinds[kind % len(kinds)])
            self.episodes.append((action, steps))
        elif action == "lose meta" and action not in busy:
            self.number += 1
            self.episodes.append((action, episodes.lose_meta(self, self.number)))
        elif action == "storm" and action not in busy:
            self.episodes.append((action, episodes.storm(self, seed)))

    def signal_one(self, action: str, child: Child, length: float) -> None:
        """SIGKILL, SIGTERM, or SIGSTOP and later SIGCONT."""
        name = f"{child.language} uid {child.uid}"
        if action == "stop":
            self.act(f"SIGSTOP {child.language}: {name} for {length:.2f} s")
            stopped = time.monotonic_ns()
            child.send(signal.SIGSTOP)
            child.stopped = True
            self.judge.delayed(stopped, stopped + int(length * 1e9) + 200_000_000)

            def go_on() -> None:
                child.send(signal.SIGCONT)
                child.stopped = False
                child.heard = time.monotonic_ns()

            self.timers.append((CLOCK.now() + length, go_on))
            return
        number = signal.SIGKILL if action == "kill" else signal.SIGTERM
        self.act(f"{number.name} {child.language}: {name}")
        child.send(number)

    # --- the end ---

    def wait_for(self, condition: Any, seconds: float) -> bool:
        """Ticks until a condition holds, within a bound."""
        until = CLOCK.now() + seconds
        while not condition():
            if CLOCK.now() > until:
                return False
            self.tick()
        return True

    def finish(self) -> None:
        """Half of the crew is killed, the others are asked to end; then nothing may be left."""
        self.wait_for(lambda: not self.episodes and not self.timers, 60)
        for _, steps in self.episodes:
            self.verdict.check("survives", False, f"an episode does not end: {steps}")
        self.episodes.clear()
        self.arena.free()
        self.act("the end: half killed, half asked", count="ends")
        # The shared clock first: those who are asked tell what they do to the last.
        for index, child in enumerate(self.fleet.of("peer")):
            if index % 2:
                child.send(signal.SIGKILL)
            else:
                child.ask_to_end()
        for child in self.fleet.of("long-lived", "victim", "storm"):
            child.ask_to_end()
        crew = ("peer", "long-lived", "victim", "storm", "cleaner")
        ended = self.wait_for(lambda: not self.fleet.of(*crew), 30)
        left = [f"{c.language} {c.role} {c.uid}" for c in self.fleet.of(*crew)]
        self.verdict.check("survives", ended, f"did not end when asked: {left}")
        participants = {f"{self.namespace}.participants"}
        folder = self.arena.dir
        gone = self.wait_for(lambda: set(self.arena.leftovers(folder)) <= participants, 10)
        self.verdict.check("empty", gone, f"the reaper left {self.arena.leftovers(folder)}")
        for child in self.fleet.of("overseer"):
            child.ask_to_end()
        self.wait_for(lambda: not self.fleet.of("overseer"), 15)
        args = [self.namespace, str(folder), "1", "0", "keep"]
        self.start("cleaner", "rust", ["cleaner", *args], json=True, killable=False)
        self.wait_for(lambda: not self.fleet.of("cleaner"), 15)
        left = self.arena.leftovers(folder)
        self.verdict.check("empty", not left, f"cleanup left {left}")
        for _, flat, figures in self.meters.growth():
            self.verdict.check("flat", flat, figures)
        self.log.close()
