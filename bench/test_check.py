"""The regression gate's own judgement, on ratios that are given: `python bench/test_check.py`."""

import contextlib
import io
import unittest

import check


class Judgement(unittest.TestCase):
    """What is worse, and what is noise."""

    def setUp(self) -> None:
        self.kept = {"ratio": 1.0, "noise": 0.02}
        self.enterContext(contextlib.redirect_stdout(io.StringIO()))

    def test_what_is_within_the_noise_passes(self) -> None:
        by, allowed = check.worse(self.kept, [1.05, 1.07, 1.09])
        self.assertLess(by, allowed)

    def test_what_is_slower_fails(self) -> None:
        by, allowed = check.worse(self.kept, [1.29, 1.30, 1.31])
        self.assertGreater(by, allowed)
        self.assertEqual(check.compare({"a": self.kept}, {"a": [1.29, 1.30, 1.31]}), 1)

    def test_a_restless_figure_must_be_much_slower(self) -> None:
        restless = {"ratio": 1.0, "noise": 0.2}
        self.assertEqual(check.compare({"a": restless}, {"a": [1.4, 1.5, 1.55]}), 0)
        self.assertEqual(check.compare({"a": restless}, {"a": [1.7, 1.8, 1.9]}), 1)

    def test_what_is_faster_passes(self) -> None:
        self.assertEqual(check.compare({"a": self.kept}, {"a": [0.2, 0.2, 0.2]}), 0)

    def test_what_is_not_measured_any_more_fails(self) -> None:
        self.assertEqual(check.compare({"a": self.kept}, {"b": [1.0]}), 1)

    def test_noise_is_a_part_of_the_median(self) -> None:
        self.assertAlmostEqual(check.noise([90.0, 100.0, 110.0]), 0.1)
        self.assertEqual(check.noise([5.0]), 0.0)


if __name__ == "__main__":
    unittest.main()
