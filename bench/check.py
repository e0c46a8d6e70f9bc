"""Compares this machine's ratios with the kept ones: `make bench-check`.

Only ratios are compared, ours to a yardstick in the same run, never times. The quick benches run
several times in a row; the median of a figure's ratios is what it is, and how far they lie apart
is its noise. A figure fails when it is worse than the kept one by more than its noise, then and
now, and more than `LEAST`: that much differs from one build to the next.

    python bench/check.py          compare with bench/baseline.json; exit 1 when a figure is worse
    python bench/check.py --keep   measure and keep, as the baseline of this kind of CPU

A ratio belongs to a kind of CPU. On one without a baseline nothing is compared, which is said.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BASELINE = ROOT / "bench" / "baseline.json"
SECTIONS = "one-thread,scale,pinned,lifecycle,beam,python"
ROUNDS = 5
LEAST = 0.10
"""A ratio that is worse by less than this part is not looked at twice."""
NOISES = 3
"""So many times its noise a figure must be worse."""

Ratios = dict[str, list[float]]


def cpu() -> str:
    """The kind of CPU, as the kernel calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return os.uname().machine


def measure(rounds: int, sections: str) -> Ratios:
    """Runs the quick benches; the ratios of every figure that has one."""
    found: Ratios = {}
    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}", flush=True)
        with tempfile.TemporaryDirectory() as kept:
            environment = {**os.environ, "SNAKEPIT_BENCH_KEEP_PARTS": kept}
            command = [str(ROOT / "bench" / "run.sh"), "--quick", "--only", sections]
            run = subprocess.run(
                command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
            )
            if run.returncode:
                sys.exit(f"the benches failed:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
            for path in sorted(Path(kept).glob("*.json")):
                for figure in json.loads(path.read_text()):
                    if figure.get("ratio"):
                        found.setdefault(figure["id"], []).append(figure["ratio"])
    if not found:
        sys.exit("no figure has a ratio: nothing was measured")
    return found


def noise(ratios: list[float]) -> float:
    """How far from the median the middle half lies, as a part of the median."""
    middle = median(ratios)
    return median(abs(ratio - middle) for ratio in ratios) / middle


def worse(kept: dict[str, float], ratios: list[float]) -> tuple[float, float]:
    """By which part a figure is worse than the kept one, and which part is allowed."""
    allowed = max(LEAST, NOISES * max(kept["noise"], noise(ratios)))
    return median(ratios) / kept["ratio"] - 1, allowed


def compare(kept: dict[str, dict[str, float]], found: Ratios) -> int:
    """Prints the figures that are worse or gone; how many there are."""
    bad = 0
    for name in sorted(kept):
        if name not in found:
            print(f"not measured any more: {name}")
            bad += 1
            continue
        by, allowed = worse(kept[name], found[name])
        if by > allowed:
            now = median(found[name])
            print(f"worse: {name}: {kept[name]['ratio']:.2f} -> {now:.2f}, {by:+.0%}", end="")
            print(f" where {allowed:.0%} is noise")
            bad += 1
    new = sorted(set(found) - set(kept))
    if new:
        print(f"not kept yet: {', '.join(new)}")
    print(f"{len(kept)} figures compared, {bad} worse")
    return bad


def keep(found: Ratios, known: dict[str, Any]) -> None:
    """Writes the baseline of this kind of CPU, and leaves those of others."""
    known[cpu()] = {
        name: {"ratio": round(median(ratios), 3), "noise": round(noise(ratios), 3)}
        for name, ratios in sorted(found.items())
    }
    BASELINE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    print(f"{len(found)} figures kept for {cpu()}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keep", action="store_true", help="measure and keep")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--sections", default=SECTIONS)
    given = parser.parse_args()
    known = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if not given.keep and cpu() not in known:
        print(f"no baseline for {cpu()}: nothing compared; bench/check.py --keep makes one")
        return 0
    found = measure(given.rounds, given.sections)
    if given.keep:
        keep(found, known)
        return 0
    return 1 if compare(known[cpu()], found) else 0


if __name__ == "__main__":
    sys.exit(main())
