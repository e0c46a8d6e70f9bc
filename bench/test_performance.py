"""The page of performance: what counts as lost, and that it all is said.

`python -m unittest discover --start-directory bench`.
"""

import copy
import json
import unittest
from typing import Any

import performance


def figure(ident: str, ours: float, theirs: float, unit: str = "ns") -> dict[str, Any]:
    """One as `make bench-peers` leaves it."""
    return {
        "id": ident,
        "name": ident,
        "size": 64,
        "ours": ours,
        "unit": unit,
        "yardstick": {"name": ident.rsplit("/", 1)[1], "value": theirs},
        "ratio": ours / theirs if theirs and unit != "count" else None,
        "hop_ns": None,
        "note": "",
    }


RUN = {
    "cpu": "a CPU",
    "cpus": 2,
    "kernel": "6",
    "date": "2000-01-01T00:00:00Z",
    "commit": "abc",
    "quick": False,
}


def report(*figures: dict[str, Any]) -> dict[str, Any]:
    """Results with one section."""
    skipped = [{"what": "one-thread, 1 GiB, seqlock", "reason": "too large"}]
    section = {"run": RUN, "figures": list(figures), "skipped": skipped}
    return {
        "sections": {"one-thread": section},
        "versions": {"seqlock": "seqlock 0.2.0"},
        "not_built": {"iceoryx2": "error: no libclang"},
    }


class Losses(unittest.TestCase):
    """Whether the peer is ahead."""

    def test_of_times_less_is_better(self) -> None:
        self.assertAlmostEqual(performance.loss(figure("a/b", 12, 10)), 0.2)
        self.assertLess(performance.loss(figure("a/b", 8, 10)), 0)

    def test_of_rates_more_is_better(self) -> None:
        self.assertAlmostEqual(performance.loss(figure("a/b", 5, 10, "per_second")), 1)
        self.assertLess(performance.loss(figure("a/b", 20, 10, "per_second")), 0)

    def test_who_gets_nothing_has_lost(self) -> None:
        self.assertLess(performance.loss(figure("a/b", 20, 0, "per_second")), 0)
        self.assertGreater(performance.loss(figure("a/b", 0, 10, "per_second")), 0)

    def test_a_torn_value_of_ours_is_lost(self) -> None:
        self.assertGreater(performance.loss(figure("a/b", 1, 0, "count")), 0)
        self.assertEqual(performance.loss(figure("a/b", 0, 0, "count")), 0)


class Page(unittest.TestCase):
    """What stands on it."""

    def setUp(self) -> None:
        self.report = report(
            figure("peers/one-thread/read/64/seqlock", 10, 1),
            figure("peers/one-thread/read/64/mmap-sync", 10, 30),
            figure("peers/one-thread/read/64/snakepit-defaults", 10, 9),
        )
        self.latest = {
            "run": {**RUN, "failed": []},
            "rows": [
                {**figure("one-thread/read/64/bare", 7, 2), "target": "at most 6 ns", "met": False},
                {**figure("one-thread/write/64/bare", 7, 2), "target": "at most 9", "met": True},
                {**figure("one-thread/write/8/bare", 7, 2), "target": None, "met": None},
            ],
            "not_measured": ["torn/reads: 10^9"],
        }
        self.reasons = {"one-thread/read/*": "a missed one", "peers/*/read/*/seqlock": "a lost one"}

    def page(self) -> str:
        return performance.page(self.latest, self.report, self.reasons)

    def test_what_is_missed_is_said_with_its_reason(self) -> None:
        self.assertIn("1 of 2 promised figures are met", self.page())
        self.assertIn("a missed one", self.page())
        self.assertIn("Not measured: torn/reads: 10^9", self.page())

    def test_what_is_lost_is_listed_and_what_is_won_is_not(self) -> None:
        lost = performance.lost(self.report)
        self.assertEqual([f["id"] for f in lost], ["peers/one-thread/read/64/seqlock"])
        self.assertIn("a lost one", self.page())
        self.assertIn("Of 2 figures beside a peer, the peer is ahead in 1", self.page())

    def test_a_reason_that_nobody_has_written_is_not_made_up(self) -> None:
        self.reasons = {}
        self.assertIn("not known yet", self.page())

    def test_what_is_missing_is_said(self) -> None:
        text = self.page()
        self.assertIn("one-thread, 1 GiB, seqlock: too large", text)
        self.assertIn("Not built: iceoryx2: error: no libclang", text)
        self.assertIn("The section crowd: it was not run", text)

    def test_the_same_results_give_the_same_page(self) -> None:
        again = json.loads(json.dumps(copy.deepcopy(self.report)))
        made = performance.page(self.latest, again, self.reasons)
        self.assertEqual(made, self.page())

    def test_without_results_there_is_a_page_that_says_so(self) -> None:
        text = performance.page(None, None, {})
        self.assertIn("`make bench` was not run", text)
        self.assertIn("`make bench-peers` was not run", text)


class Kept(unittest.TestCase):
    """The results that are committed."""

    def test_every_row_that_is_missed_or_clearly_lost_has_a_reason(self) -> None:
        reasons = performance.load(performance.REASONS)
        latest = performance.load(performance.RESULTS / "latest.json") or {"rows": []}
        peers = performance.load(performance.RESULTS / "peers.json") or {"sections": {}}
        wanting = [row["id"] for row in latest["rows"] if row["met"] is False]
        wanting += [f["id"] for f in performance.lost(peers) if performance.loss(f) > 0.05]
        unknown = [i for i in wanting if performance.reason_for(i, reasons) == "not known yet"]
        self.assertEqual(unknown, [])

    def test_every_peer_is_described(self) -> None:
        peers = performance.load(performance.RESULTS / "peers.json") or {"sections": {}}
        found = {performance.locate(f)[2] for f in performance.all_figures(peers)}
        self.assertEqual(found - set(performance.PEERS), set())


if __name__ == "__main__":
    unittest.main()
