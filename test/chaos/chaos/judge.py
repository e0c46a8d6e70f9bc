"""Holds what peers and the overseer said against the promises.

Records are entered in the ledger as they come. Checks wait for two rounds of reading all pipes, so
that everything that was said before the step checked has been heard.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from .fleet import Child
from .ledger import SECOND, Ledger, Use
from .records import SEGMENTS, Kind, Record, Step, code_name, segment_name, slots
from .verdict import Verdict

ALLOWED: dict[int, set[str]] = {
    Step.CREATE: {"already_exists", "resource_exhausted", "timeout"},
    Step.CLAIM: {
        "segment_busy", "sealed", "closed", "not_found", "schema_mismatch", "resource_exhausted",
        "timeout",
    },
    Step.WRITE: set(),
    Step.READ: {"empty", "closed"},  # nothing was published; and nothing will be
    Step.WAIT: {"timeout", "closed", "sealed"},
    Step.ATTACH: {"not_found", "resource_exhausted", "timeout"},
    Step.GIVE: {"timeout"},
    Step.DETACH: {"timeout"},
    Step.SEAL: {"empty"},
    Step.LOOK: {"timeout", "resource_exhausted"},
}  # fmt: skip

SEG_OF = {segment_name(seg): seg for seg in range(SEGMENTS)}


class Judge:
    """Keeps the ledger and gives the verdict."""

    def __init__(self, verdict: Verdict, grace_ms: int, foreign: set[str]) -> None:
        self.verdict = verdict
        self.ledger = Ledger()
        self.grace = grace_ms * 1_000_000
        self.foreign = foreign
        self.done: Counter[str] = Counter()
        self.late: list[list[Any]] = [[], []]
        self.delays: list[tuple[int, int]] = []
        self.strays: dict[str, int] = {}
        self.unnamed: dict[str, dict[tuple[int, int], int]] = {}
        self.slowest_count = 0
        self.slowest_removal = 0

    def delayed(self, t0: int, t1: int) -> None:
        """Somebody who may have held the namespace lock, or the overseer, did not run meanwhile."""
        self.delays.append((t0, t1))
        self.delays = [d for d in self.delays if d[1] > t1 - 60 * SECOND]

    def allowance(self, since: int, until: int) -> int:
        """How much later things may be because somebody was stopped."""
        return sum(max(0, min(until, t1) - max(since, t0)) for t0, t1 in self.delays)

    # --- entering ---

    def hear(self, child: Child, record: Record) -> None:
        """Enters a record in the ledger."""
        kind, ledger = record.kind, self.ledger
        seg, tag = record.seg, record.tag
        if kind == Kind.INTENT:
            ledger.life(seg, tag).intend(record.version, record.len, record.crc, record.t0)
        elif kind == Kind.PUBLISHED:
            self.done["published"] += 1
            self.done[f"published as {('patch', 'loan', 'write')[record.aux % 3]}"] += 1
            newer = ledger.life(seg, tag).evidence(record.t1, record.version)
            if newer is not None and newer > record.version:
                self.verdict.check("one-writer", False, f"{newer} was there before {record}")
        elif kind == Kind.CLAIM_BEGIN:
            ledger.begin(child, seg, tag, record.t0, writes=True)
        elif kind == Kind.ATTACH_BEGIN:
            ledger.begin(child, seg, 0, record.t0, writes=False)
        elif kind in (Kind.CLAIMED, Kind.ATTACHED):
            use = ledger.current(child, seg, writes=kind == Kind.CLAIMED)
            if use is not None:
                use.sure_from, use.tag = record.t1, tag
            life = ledger.life(seg, tag)
            if kind == Kind.CLAIMED:
                if child.language == "elixir" and record.aux == 1:
                    life.remover = child
                self.done["created" if record.aux == 1 else "taken over"] += 1
                self.late[-1].append((child, record))
            else:
                self.done["attached"] += 1
        elif kind in (Kind.GIVE_BEGIN, Kind.DETACH_BEGIN):
            use = ledger.current(child, seg, writes=kind == Kind.GIVE_BEGIN)
            if use is not None:
                use.given = record.t0
            if kind == Kind.GIVE_BEGIN:
                self.done[("handed over", "closed", "deallocated")[record.aux % 3]] += 1
                if record.aux == 2:
                    ledger.life(seg, tag).removing = record.t0
        elif kind in (Kind.GIVEN, Kind.DETACHED):
            ledger.end(child, seg, record.t1, writes=kind == Kind.GIVEN)
        elif kind == Kind.SEALED:
            self.done["sealed"] += 1
        elif kind == Kind.ERROR:
            if record.aux in (Step.CREATE, Step.CLAIM):
                ledger.end(child, seg, record.t1, writes=True, failed=True)
            elif record.aux == Step.ATTACH:
                ledger.end(child, seg, record.t1, writes=False, failed=True)
            self.done[f"{Step(record.aux).name.lower()}: {code_name(record.code)}"] += 1
            self.late[-1].append((child, record))
        elif kind in (Kind.READ, Kind.BAD, Kind.WAITED):
            if kind == Kind.WAITED:
                self.done["waited"] += 1
            elif record.aux != 100:
                self.done[f"reads checked, {child.language}"] += 1
            self.late[-1].append((child, record))

    def see(self, snapshot: dict[str, Any]) -> None:
        """Enters a look of the overseer."""
        if snapshot["late_ms"] > 50:
            self.delayed(snapshot["t0"] - snapshot["late_ms"] * 1_000_000, snapshot["t0"])
        for event in snapshot["events"]:
            swept = event.get("swept", {})
            self.done["removed by the reaper"] += len(swept.get("removed", ()))
            self.done["dead readers cleared"] += swept.get("cleared_readers", 0)
            self.done["metadata found again"] += len(swept.get("recovered", ()))
            if "failed" in event:
                allowed = "not released" in event["failed"] or "lock" in event["failed"]
                self.verdict.check("named-errors", allowed, f"the reaper: {event['failed']}")
        self.late[-1].append(snapshot)

    # --- checking ---

    def round(self) -> None:
        """Checks what was heard two rounds ago; call it after all pipes were read."""
        due = self.late.pop(0)
        self.late.append([])
        for item in due:
            if isinstance(item, dict):
                self.check_look(item)
                continue
            child, record = item
            if record.kind == Kind.READ:
                self.check_read(record)
            elif record.kind == Kind.BAD:
                self.verdict.check("whole", False, f"{child.language}: {record}")
            elif record.kind == Kind.WAITED:
                newest = self.ledger.life(record.seg, record.tag).newest(record.t0)
                held = record.version >= newest and record.version != record.aux
                self.verdict.check("fresh", held, f"wait: {newest} was there before {record}")
            elif record.kind == Kind.CLAIMED:
                self.check_claim(child, record)
            else:
                self.check_error(child, record)

    def check_read(self, record: Record) -> None:
        """Whole and fresh."""
        life = self.ledger.life(record.seg, record.tag)
        content, version = (record.len, record.crc), record.version
        if version == 0:  # the binding does not say which one it was
            version = life.by_content.get(content, 0)
        held = content in life.intents.get(version, ())
        if not self.verdict.check(
            "whole", held, f"{record} is none of {life.intents.get(version)}"
        ):
            return
        newest = life.newest(record.t0)
        self.verdict.check("fresh", version >= newest, f"{newest} was there before {record}")
        life.evidence(record.t1, version)

    def check_claim(self, child: Child, record: Record) -> None:
        """Goes on from the last value, and nobody else held it."""
        newest = self.ledger.life(record.seg, record.tag).newest(record.t0)
        if record.aux > 1:
            self.verdict.check("kept", record.version >= newest, f"{newest} was there: {record}")
        others = [
            use
            for use in self.ledger.of(record.seg)
            if use.writes and use.child is not child and use.sure(record.t0, record.t1)
        ]
        self.verdict.check("one-writer", not others, f"{record} while {others}")

    def check_error(self, child: Child, record: Record) -> None:
        """One that the step may meet, at a time when it may."""
        code, seg = code_name(record.code), record.seg
        allowed = set(ALLOWED[record.aux])
        if slots(seg) == 1 and record.aux == Step.READ:
            allowed |= {"torn", "version_conflict"}
        self.verdict.check(
            "named-errors",
            code in allowed,
            f"{child.language} {Step(record.aux).name} {segment_name(seg)}: {code} {record}",
        )
        t0, t1 = record.t0, record.t1
        if code in ("empty", "closed") and record.aux == Step.READ:
            newest = self.ledger.life(seg, record.tag).newest(t0)
            self.verdict.check("fresh", newest == 0, f"{code}, but {newest} was there: {record}")
        elif code == "not_found":
            tag = record.tag or None
            users = [u for u in self.ledger.of(seg, tag) if self.is_kept(u, t0, t1)]
            self.verdict.check("no-live-removed", not users, f"not found, but used: {users}")
        elif code == "segment_busy":
            others = self.ledger.of(seg, record.tag or None)
            held = any(u.writes and u.child is not child and u.possible(t0, t1) for u in others)
            self.verdict.check("one-writer", held, f"busy, but nobody writes it: {record}")

    def check_look(self, look: dict[str, Any]) -> None:
        """Counts, owners and files, as seen from outside."""
        names = set()
        for seen in look["segs"]:
            names.add(seen["name"])
            seg = SEG_OF.get(seen["name"])
            if seg is None or "error" in seen:
                continue  # a victim; or it went while it was looked at
            self.check_counts(seg, seen)
            self.check_owner(seg, seen)
        for name, seg in SEG_OF.items():
            seen_tags = {s.get("tag") for s in look["segs"] if s["name"] == name}
            failed = any("error" in s for s in look["segs"] if s["name"] == name)
            sure = [u for u in self.ledger.of(seg) if self.is_kept(u, look["t0"], look["t1"])]
            for use in sure:
                there = use.tag in seen_tags or failed
                self.verdict.check("no-live-removed", there, f"{name} is gone, but used: {use}")
        self.check_strays(look)

    def is_kept(self, use: Use, t0: int, t1: int) -> bool:
        """Whether a segment must be there because of a use."""
        if not use.tag or not use.sure(t0, t1):
            return False
        return t1 < self.ledger.life(use.seg, use.tag).may_go

    def check_counts(self, seg: int, seen: dict[str, Any]) -> None:
        """Exactly the readers that there are."""
        t0, t1, tag = seen["t0"], seen["t1"], seen["tag"]
        found = Counter(seen["readers"])
        readers = [u for u in self.ledger.of(seg, tag) if not u.writes]
        for use in readers:
            if use.tag == tag and use.sure(t0, t1):
                held = found[use.child.pid] > 0
                self.verdict.check("counted", held, f"{seen} does not count {use}")
        for pid, count in found.items():
            held = self.may_be_counted(pid, count, readers, t0, t1)
            self.verdict.check("counted", held, f"{seen} counts {pid} {count} times")
        self.check_unnamed(seen)

    def check_unnamed(self, seen: dict[str, Any]) -> None:
        """Of the dead, whose place among the participants another has taken: no longer than 1 s."""
        t0, t1, tag = seen["t0"], seen["t1"], seen["tag"]
        before = self.unnamed.pop(seen["name"], {})
        now = {(tag, entry): before.get((tag, entry), t1) for entry in seen["unnamed"]}
        self.unnamed[seen["name"]] = now
        for since in now.values():
            after = t0 - since - self.allowance(since, t0)
            held = after <= SECOND
            self.verdict.check("counted", held, f"{seen} counts the dead for {after / 1e9:.2f} s")

    def may_be_counted(self, pid: int, count: int, readers: list[Use], t0: int, t1: int) -> bool:
        """Whether a process attached, or died less than 1 s before."""
        possible = 0
        for use in readers:
            if use.child.pid != pid:
                continue
            if use.possible(t0, t1):
                possible += 1
            elif use.child.language == "elixir" and use.ended is not None:
                # A zero-copy binary counts until it is collected, which the peer does as it leaves;
                # the mapping itself goes in the background.
                possible += t0 - use.ended - self.allowance(use.ended, t0) < SECOND
            elif (died := use.child.reaped) is not None and use.ended is None:
                after = t0 - died - self.allowance(died, t0)
                if after < SECOND:
                    possible += 1
                    self.slowest_count = max(self.slowest_count, after)
        return count <= possible

    def check_owner(self, seg: int, seen: dict[str, Any]) -> None:
        """Somebody uses it, or did a moment ago."""
        t0, tag = seen["t0"], seen["tag"]
        uses = list(self.ledger.of(seg, tag))
        last = max((u.possible_until for u in uses if u.begun <= t0), default=0)
        last = max(last, self.ledger.life(seg, tag).last_use)
        after = t0 - last - self.allowance(last, t0)
        bound = self.grace + SECOND
        self.verdict.check("no-orphan", after <= bound, f"{seen} for {after / 1e9:.2f} s")
        self.slowest_removal = max(self.slowest_removal, min(after, bound))

    def check_strays(self, look: dict[str, Any]) -> None:
        """Files that belong to no segment that can be found."""
        known = {*self.foreign, *look.get("kept", ())}
        for seen in look["segs"]:
            known.add(seen.get("file", ""))
        strays = {
            f
            for f in look["files"]
            if f not in known and not f.endswith((".meta", ".participants"))
            and not any(part in f for part in ("victim-", "lost-"))
        }  # fmt: skip
        self.strays = {f: self.strays.get(f, look["t0"]) for f in strays}
        for name, since in self.strays.items():
            after = look["t0"] - since - self.allowance(since, look["t0"])
            held = after <= self.grace + 2 * SECOND
            self.verdict.check("no-orphan", held, f"file {name} for {after / 1e9:.2f} s")
