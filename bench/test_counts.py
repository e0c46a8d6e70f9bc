"""The judgement on instruction counts, on counts that are given: `python bench/test_counts.py`."""

import contextlib
import io
import unittest

import counts


class Judgement(unittest.TestCase):
    """What is worse, what is better, and what is missing."""

    def judged(self, kept: counts.Counts, found: counts.Counts) -> tuple[int, str]:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            bad = counts.judge(kept, found)
        return bad, said.getvalue()

    def test_as_before(self) -> None:
        self.assertEqual(self.judged({"a": 100.0}, {"a": 102.9})[0], 0)

    def test_more_fails(self) -> None:
        bad, said = self.judged({"a": 100.0, "b": 5.0}, {"a": 103.1, "b": 5.0})
        self.assertEqual(bad, 1)
        self.assertIn("+3.1%: FAILED", said)

    def test_less_is_to_be_kept(self) -> None:
        bad, said = self.judged({"a": 100.0}, {"a": 90.0})
        self.assertEqual(bad, 0)
        self.assertIn("keep it", said)

    def test_what_is_on_one_side_only_fails(self) -> None:
        self.assertEqual(self.judged({"a": 1.0}, {"b": 1.0})[0], 2)


if __name__ == "__main__":
    unittest.main()
