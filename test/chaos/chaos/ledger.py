"""What peers said: which values there were, and who may have used which segment when.

A step is bracketed by two records, one sent before it and one after it. Between them the step may
or may not have happened; so each use has a span in which it is *sure* and a longer one in which it
is *possible*. A killed process is sure until the signal was sent and possible until it was reaped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from .fleet import Child

SECOND = 1_000_000_000
KEEP = 60 * SECOND
RECENT = 5 * SECOND
NEVER = 1 << 63


@dataclass(eq=False)
class Use:
    """A process that writes or reads a segment."""

    child: Child
    seg: int
    tag: int
    """Of the incarnation; 0 while it is not known."""
    begun: int
    writes: bool
    sure_from: int = NEVER
    given: int | None = None
    """When it set out to end the use."""
    ended: int | None = None
    """When the use had certainly ended."""
    failed: bool = False

    @property
    def sure_until(self) -> int:
        """Up to here the use was certainly not given up."""
        return min(self.given or NEVER, self.child.killed or NEVER)

    @property
    def possible_until(self) -> int:
        """From here on it certainly was."""
        return min(self.ended or NEVER, self.child.reaped or NEVER)

    def sure(self, t0: int, t1: int) -> bool:
        """Whether it certainly lasted from `t0` to `t1`."""
        return self.sure_from <= t0 and t1 < self.sure_until

    def possible(self, t0: int, t1: int) -> bool:
        """Whether it may have lasted at some time from `t0` to `t1`."""
        return self.begun <= t1 and t0 <= self.possible_until


@dataclass
class Life:
    """One incarnation of a segment and its values."""

    seg: int
    tag: int
    # Several of one version: a writer that died before it published left the version to its heir,
    # and the two are heard in any order.
    intents: dict[int, set[tuple[int, int]]] = field(default_factory=dict)
    by_content: dict[tuple[int, int], int] = field(default_factory=dict)
    order: deque[tuple[int, int]] = field(default_factory=deque)
    seen_at: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    last_use: int = 0
    """When the last of those uses ended that are not kept any more."""
    remover: Child | None = None
    """Its creator, when its binding removes a segment with its owner, whoever reads it."""
    removing: int = NEVER

    @property
    def may_go(self) -> int:
        """From here on it may be removed although it is read."""
        return min(self.removing, (self.remover and self.remover.killed) or NEVER)

    def intend(self, version: int, length: int, crc: int, at: int) -> None:
        """A writer is about to publish this; one that died before left the version to it."""
        self.intents.setdefault(version, set()).add((length, crc))
        self.by_content[length, crc] = version
        self.order.append((at, version))
        horizon = at - KEEP
        while len(self.order) > 1 and self.order[1][0] < horizon:
            _, old = self.order.popleft()
            if old < version - 128:
                for content in self.intents.pop(old, ()):
                    self.by_content.pop(content, None)

    def evidence(self, at: int, version: int) -> int | None:
        """From `at` on, nobody may see anything older; what was known already, if as new."""
        known = self.newest(at)
        if version <= known:
            return known
        place = bisect_right(self.seen_at, at)
        self.seen_at.insert(place, at)
        self.seen.insert(place, version)
        if len(self.seen_at) > 4096:
            keep = max(0, bisect_right(self.seen_at, at - KEEP) - 1)
            del self.seen_at[:keep], self.seen[:keep]
        return None

    def newest(self, at: int) -> int:
        """The newest version that was certainly published at a time; 0 = none."""
        place = bisect_right(self.seen_at, at)
        # Late evidence may stand before earlier evidence of something newer.
        return max(self.seen[max(0, place - 8) : place], default=0)


class Ledger:
    """Everything that is known of lives and uses."""

    def __init__(self) -> None:
        self.lives: dict[int, Life] = {}
        self.uses: dict[int, list[Use]] = defaultdict(list)
        self.open: dict[tuple[int, int, bool], Use] = {}

    def life(self, seg: int, tag: int) -> Life:
        """The life of a tag; it begins with the first mention."""
        if tag not in self.lives:
            self.lives[tag] = Life(seg, tag)
        return self.lives[tag]

    def begin(self, child: Child, seg: int, tag: int, at: int, *, writes: bool) -> None:
        """A peer is about to claim or attach."""
        use = Use(child, seg, tag, at, writes)
        self.uses[seg].append(use)
        self.open[child.uid, seg, writes] = use

    def current(self, child: Child, seg: int, *, writes: bool) -> Use | None:
        """The use that a peer's records speak of."""
        return self.open.get((child.uid, seg, writes))

    def end(self, child: Child, seg: int, at: int, *, writes: bool, failed: bool = False) -> None:
        """A peer has given up a use, or was refused it."""
        use = self.open.pop((child.uid, seg, writes), None)
        if use is not None:
            use.ended = at
            use.failed = failed

    def of(self, seg: int, tag: int | None = None) -> Iterator[Use]:
        """Uses of a segment, of one incarnation or, where it is not known, of any."""
        for use in self.uses[seg]:
            if tag is None or use.tag in (tag, 0):
                yield use

    def forget(self, now: int) -> None:
        """Drops what no check will ask for any more; `now` is when the pipes were last read."""
        for seg, uses in self.uses.items():
            kept = []
            for use in uses:
                if use.possible_until > now - RECENT:
                    kept.append(use)
                elif use.tag in self.lives:
                    life = self.lives[use.tag]
                    life.last_use = max(life.last_use, use.possible_until)
            self.uses[seg] = kept
            in_use = {use.tag for use in kept}
            for life in [x for x in self.lives.values() if x.seg == seg and x.tag not in in_use]:
                if life.last_use < now - KEEP:
                    del self.lives[life.tag]
        for key in [k for k, u in self.open.items() if u.possible_until < now - RECENT]:
            del self.open[key]
