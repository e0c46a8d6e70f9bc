"""Counts the instructions of a read and a write, beside the kept counts: `make test-counts`.

A clock says what a machine did that minute; a count is the same every time, so that a few
instructions more on the hot path show at once. `valgrind --tool=callgrind` runs the program
`counts` twice, and the difference between the runs is what so many more operations executed
(`bench/rust/src/bin/counts.rs`).

    python bench/counts.py          compare with bench/counts.json; exit 1 when a count is worse
    python bench/counts.py --keep   count and keep

What is counted is the vector loop that valgrind's own processor gets: AVX2 where the machine has
it (valgrind knows no AVX-512), SSE2 elsewhere. Counts of each are kept under their own name.
`rep movsb` is not among them: valgrind counts it by the piece, not as the one instruction it is.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "bench" / "counts.json"
TIMES = 20_000
"""So many more are in the second run: what the runs differ in by chance is below 0.1 of each."""
ALLOWED = 0.03
"""A count may be more by this part: compilers differ."""

Counts = dict[str, float]


def kind() -> str:
    """What decides which instructions run: the architecture and the vectors of valgrind."""
    machine = os.uname().machine
    flags = Path("/proc/cpuinfo").read_text().split()
    return f"{machine}-avx2" if "avx2" in flags else machine


def compiler() -> str:
    """The compiler that made the counted program."""
    return subprocess.run(
        ["rustc", "--version"], check=True, capture_output=True, text=True
    ).stdout.strip()


def build() -> Path:
    """The program, built as the benches are."""
    command = ["cargo", "build", "--quiet", "--release", "-p", "snakepit-shm-bench"]
    subprocess.run([*command, "--bin", "counts"], check=True, cwd=ROOT)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return target / "release" / "counts"


def executed(program: Path, operation: str, times: int) -> int:
    """Instructions of one run."""
    run = subprocess.run(
        [
            *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
            *(str(program), "run", operation, str(times)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Collected : (\d+)", run.stderr)
    if run.returncode or not found:
        sys.exit(f"counting {operation} failed:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
    return int(found[1])


def count(program: Path) -> Counts:
    """Instructions of each operation."""
    listed = subprocess.run([program, "list"], check=True, capture_output=True, text=True)
    operations = listed.stdout.split()
    if not operations:
        sys.exit("there is no operation to count")
    # Without one more of anything: it is the same for all.
    base = executed(program, operations[0], 0)
    return {name: round((executed(program, name, TIMES) - base) / TIMES, 1) for name in operations}


def judge(kept: Counts, found: Counts) -> int:
    """Prints every count beside the kept one; how many are worse, or on one side only."""
    bad = 0
    for name in sorted(kept.keys() | found.keys()):
        before, now = kept.get(name), found.get(name)
        if before is None or now is None:
            said = "not counted any more: FAILED" if now is None else "not kept: FAILED"
            bad += 1
        elif now > before * (1 + ALLOWED):
            said = f"{now / before - 1:+.1%}: FAILED, at most {ALLOWED:+.0%} is allowed"
            bad += 1
        elif now < before * (1 - ALLOWED):
            said = f"{now / before - 1:+.1%}: better; keep it, with --keep"
        else:
            said = "ok"
        shown = ["-" if n is None else f"{n:.1f}" for n in (before, now)]
        print(f"{name:20} kept {shown[0]:>8}, now {shown[1]:>8}   {said}")
    return bad


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keep", action="store_true", help="count and keep")
    given = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is missing; make setup installs it where it may (Debian: valgrind)")
    known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    found = count(build())
    if given.keep:
        known[kind()] = {"compiler": compiler(), "instructions": found}
        KEPT.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        print(f"{len(found)} counts kept for {kind()}")
        return 0
    if kind() not in known:
        print(f"no counts are kept for {kind()}; bench/counts.py --keep keeps these: {found}")
        return 1
    print(f"instructions of one operation on {kind()}, with {compiler()}")
    bad = judge(known[kind()]["instructions"], found)
    if bad and compiler() != known[kind()]["compiler"]:
        print(f"the kept ones are of {known[kind()]['compiler']}")
    print(f"{len(found) - bad} passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
