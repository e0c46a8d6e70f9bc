"""What is promised, how often it was checked, and how often it was broken."""

from __future__ import annotations

from dataclasses import dataclass, field

PROMISES = {
    "whole": "every value read is, byte for byte, one that its writer set out to publish",
    "fresh": "no value read is older than the last one published, or read, before the read began",
    "kept": "a writer that takes over goes on from the last value that was published",
    "one-writer": "at most one process at a time writes a segment or owns a name",
    "counted": "attached readers are counted, and 1 s after a death only those",
    "no-orphan": "no file without an owner after the grace",
    "no-live-removed": "no segment that a living process uses is removed, or cannot be found",
    "named-errors": "every refusal is one that the step may meet",
    "survives": "no process ends but by a signal it was sent, none hangs, SIGTERM ends it",
    "damaged": "whoever uses a cut or scribbled segment gets a named error or the value, and lives",
    "found-again": "a lost .meta is found again",
    "storm": "after all processes were killed at once, one cleanup leaves nothing",
    "foreign": "files of others in the directory stay as they are",
    "flat": "memory, mappings and descriptors of long-lived processes do not grow",
    "empty": "in the end nothing is left",
}


@dataclass
class Promise:
    """How a promise fared."""

    checked: int = 0
    broken: int = 0
    examples: list[str] = field(default_factory=list)


class Verdict:
    """All promises."""

    def __init__(self) -> None:
        self.promises = {name: Promise() for name in PROMISES}
        self.fresh_breaks: list[str] = []

    def check(self, name: str, held: bool, what: str = "") -> bool:
        """Notes a check; `what` says what was found when it did not hold."""
        promise = self.promises[name]
        promise.checked += 1
        if not held:
            promise.broken += 1
            if len(promise.examples) < 20:
                promise.examples.append(what)
                self.fresh_breaks.append(f"BROKEN {name}: {what}")
        return held

    @property
    def failed(self) -> list[str]:
        """Promises that were broken, or never put to the test."""
        return [n for n, p in self.promises.items() if p.broken or not p.checked]

    def table(self) -> str:
        """A line for each promise, the examples of the broken ones, and the count."""
        lines = []
        for name, promise in self.promises.items():
            verdict = "BROKEN" if promise.broken else "ok" if promise.checked else "NEVER CHECKED"
            lines.append(
                f"  {name:<16}{verdict:<14}{promise.checked:>10} checks"
                f"{promise.broken:>6} broken  {PROMISES[name]}"
            )
            lines += [f"      {example}" for example in promise.examples]
        failed = len(self.failed)
        return "\n".join([*lines, f"{len(self.promises) - failed} passed, {failed} failed"])
