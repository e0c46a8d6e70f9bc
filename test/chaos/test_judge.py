"""The judge finds what it is there to find: each promise is broken here, on records made by hand.

python -m unittest test_judge
"""

from __future__ import annotations

import random
import unittest
from types import SimpleNamespace
from typing import Any

from chaos import value
from chaos.clock import Clock
from chaos.judge import Judge
from chaos.ledger import SECOND
from chaos.meters import Meters, Series
from chaos.records import CODES, Kind, Record, Step
from chaos.verdict import Verdict

TAG = 7


def child(uid: int, language: str = "rust") -> Any:
    """A process that lives."""
    return SimpleNamespace(uid=uid, pid=1000 + uid, language=language, killed=None, reaped=None)


def record(kind: Kind, t0: int, t1: int, **fields: int) -> Record:
    """A record about segment 1 (two slots)."""
    base = dict.fromkeys(Record._fields, 0) | {"seg": 1, "tag": TAG, "len": 64, "crc": 5}
    return Record(**{**base, "kind": int(kind), "t0": t0, "t1": t1, **fields})


class Judging(unittest.TestCase):
    """One writer, one reader, and what the judge says of them."""

    def setUp(self) -> None:
        self.verdict = Verdict()
        self.judge = Judge(self.verdict, 500, set())
        self.writer, self.reader = child(1), child(2)

    def hear(self, who: Any, *records: Record) -> None:
        for one in records:
            self.judge.hear(who, one)

    def broken(self) -> set[str]:
        """Promises that are broken once everything was checked."""
        for _ in range(3):
            self.judge.round()
        return {n for n, p in self.verdict.promises.items() if p.broken}

    def create(self, at: int = 10) -> None:
        self.hear(
            self.writer,
            record(Kind.CLAIM_BEGIN, at, at),
            record(Kind.CLAIMED, at, at + 1, aux=1),
        )

    def publish(self, version: int, at: int, crc: int = 5) -> None:
        self.hear(
            self.writer,
            record(Kind.INTENT, at, at, version=version, crc=crc),
            record(Kind.PUBLISHED, at, at + 1, version=version, crc=crc),
        )

    def attach(self, at: int) -> None:
        self.hear(
            self.reader,
            record(Kind.ATTACH_BEGIN, at, at, tag=0),
            record(Kind.ATTACHED, at, at + 1),
        )

    def look(
        self, at: int, *, readers: list[int], unnamed: tuple[int, ...] = (), gone: bool = False
    ) -> None:
        seen = {"name": "s-0_data", "t0": at, "t1": at + 1, "tag": TAG, "file": "f"}
        seen |= {"unnamed": list(unnamed)}
        self.judge.see(
            {
                "t0": at, "t1": at + 1, "late_ms": 0, "events": [], "files": ["f"],
                "segs": [] if gone else [{**seen, "readers": readers}],
            }
        )  # fmt: skip

    def test_a_good_run_breaks_nothing(self) -> None:
        self.create()
        self.publish(2, 20)
        self.attach(30)
        self.hear(self.reader, record(Kind.READ, 40, 41, version=2))
        self.look(50, readers=[self.reader.pid])
        self.assertEqual(self.broken(), set())
        checked = {n for n, p in self.verdict.promises.items() if p.checked}
        self.assertLessEqual({"whole", "fresh", "counted", "no-live-removed"}, checked)

    def test_a_value_that_nobody_wrote(self) -> None:
        self.publish(2, 20)
        self.hear(self.reader, record(Kind.READ, 40, 41, version=2, crc=6))
        self.assertEqual(self.broken(), {"whole"})

    def test_an_old_value(self) -> None:
        self.publish(2, 20)
        self.publish(4, 30, crc=9)
        self.hear(self.reader, record(Kind.READ, 40, 41, version=2))
        self.assertEqual(self.broken(), {"fresh"})

    def test_going_back_behind_what_another_has_read(self) -> None:
        self.publish(2, 20)
        self.hear(self.writer, record(Kind.INTENT, 30, 30, version=4, crc=9))
        self.hear(self.reader, record(Kind.READ, 40, 41, version=4, crc=9))
        self.hear(child(3), record(Kind.READ, 50, 51, version=2))
        self.assertEqual(self.broken(), {"fresh"})

    def test_empty_after_a_publication(self) -> None:
        self.publish(2, 20)
        empty = CODES.index("empty")
        self.hear(self.reader, record(Kind.ERROR, 40, 41, aux=Step.READ, code=empty))
        self.assertEqual(self.broken(), {"fresh"})

    def test_closed_without_a_value(self) -> None:
        self.create()
        closed = CODES.index("closed")
        self.hear(self.reader, record(Kind.ERROR, 40, 41, aux=Step.READ, code=closed))
        self.assertEqual(self.broken(), set())
        self.publish(2, 50)
        self.hear(self.reader, record(Kind.ERROR, 60, 61, aux=Step.READ, code=closed))
        self.assertEqual(self.broken(), {"fresh"})

    def test_a_takeover_that_lost_a_value(self) -> None:
        self.publish(4, 20)
        self.hear(child(3), record(Kind.CLAIMED, 40, 41, version=2, aux=2))
        self.assertEqual(self.broken(), {"kept"})

    def test_two_writers(self) -> None:
        self.create()
        other = child(3)
        self.hear(other, record(Kind.CLAIM_BEGIN, 40, 40), record(Kind.CLAIMED, 40, 41, aux=2))
        self.assertEqual(self.broken(), {"one-writer"})

    def test_busy_without_a_writer(self) -> None:
        busy = CODES.index("segment_busy")
        self.hear(self.reader, record(Kind.ERROR, 40, 41, aux=Step.CLAIM, code=busy))
        self.assertEqual(self.broken(), {"one-writer"})

    def test_a_reader_that_is_not_counted(self) -> None:
        self.create()
        self.attach(30)
        self.look(50, readers=[])
        self.assertEqual(self.broken(), {"counted"})

    def test_a_dead_reader_that_is_counted_for_longer_than_a_second(self) -> None:
        self.create()
        self.attach(30)
        self.reader.killed = self.reader.reaped = 100
        self.look(SECOND // 2, readers=[self.reader.pid])
        self.assertEqual(self.broken(), set())
        self.look(2 * SECOND, readers=[self.reader.pid])
        self.assertEqual(self.broken(), {"counted"})

    def test_a_dead_reader_whose_place_was_taken_is_counted_for_longer_than_a_second(self) -> None:
        self.create()
        self.look(50, readers=[], unnamed=(3,))
        self.look(SECOND, readers=[], unnamed=(4,))
        self.look(SECOND + 100, readers=[], unnamed=(4,))
        self.assertEqual(self.broken(), set())
        self.look(2 * SECOND + 50, readers=[], unnamed=(4,))
        self.assertEqual(self.broken(), {"counted"})

    def test_a_reader_counted_twice(self) -> None:
        self.create()
        self.attach(30)
        self.look(50, readers=[self.reader.pid, self.reader.pid])
        self.assertEqual(self.broken(), {"counted"})

    def test_a_live_segment_that_is_gone(self) -> None:
        self.create()
        self.look(50, readers=[], gone=True)
        self.assertIn("no-live-removed", self.broken())

    def test_a_live_segment_that_is_not_found(self) -> None:
        self.create()
        missing = CODES.index("not_found")
        self.hear(self.reader, record(Kind.ERROR, 40, 41, tag=0, aux=Step.ATTACH, code=missing))
        self.assertEqual(self.broken(), {"no-live-removed"})

    def test_an_orphan(self) -> None:
        self.create()
        self.writer.killed = self.writer.reaped = 100
        self.look(SECOND, readers=[])
        self.assertEqual(self.broken(), set())
        self.look(2 * SECOND, readers=[])
        self.assertEqual(self.broken(), {"no-orphan"})

    def test_time_that_somebody_was_stopped_does_not_count(self) -> None:
        self.create()
        self.writer.killed = self.writer.reaped = 100
        self.judge.delayed(100, SECOND)
        self.look(2 * SECOND, readers=[])
        self.assertEqual(self.broken(), set())

    def test_an_error_that_the_step_may_not_meet(self) -> None:
        corrupted = CODES.index("corrupted")
        self.hear(self.reader, record(Kind.ERROR, 40, 41, aux=Step.READ, code=corrupted))
        self.assertEqual(self.broken(), {"named-errors"})

    def test_growth(self) -> None:
        meters = Meters()
        meters.series[1] = Series("leaky", [(t, 1e5 + 100 * t, 1e4, 9, 40) for t in range(600)])
        flat = {name: flat for name, flat, _ in meters.growth()}
        self.assertFalse(flat["leaky resident memory (KiB)"])
        self.assertTrue(flat["leaky descriptors"])


class Time(unittest.TestCase):
    """What the machine took does not count."""

    def test_a_machine_that_stood_still(self) -> None:
        clock = Clock()
        self.assertIsNone(clock.tick())
        before = clock.now()
        clock.ticked -= 41
        span = clock.tick()
        assert span is not None
        self.assertAlmostEqual((span[1] - span[0]) / 1e9, 41, delta=1)
        self.assertAlmostEqual(clock.now(), before - 41, delta=1)


class Values(unittest.TestCase):
    """Values say whether they are whole."""

    def test_whole_patched_and_torn(self) -> None:
        rng = random.Random(1)
        for seg in range(5):
            one = value.whole(rng, seg, TAG, 2, 1)
            self.assertEqual(value.fault(bytes(one), seg, TAG), 0)
            before = bytes(one)
            offset, data = value.patch(rng, seg, one)
            self.assertEqual(bytes(one[offset : offset + len(data)]), data)
            self.assertEqual(value.fault(bytes(one), seg, TAG), 0)
            half = offset + len(data) // 16 * 8
            torn = bytes(one[:half]) + before[half : len(one)].ljust(len(one) - half, b"\0")
            self.assertEqual(value.fault(torn, seg, TAG), 5)


if __name__ == "__main__":
    unittest.main()
