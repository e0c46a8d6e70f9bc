"""The chaos harness: processes in three languages, a killer among them, and a judge.

python -m chaos --peer target/release/chaos-peer --seed 1 --seconds 180

The seed decides what peers and killer do, in which order; the machine decides when. A run that
failed is repeated with its seed. Ends with 1 when a promise was broken or never put to the test.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from .arena import Arena
from .fleet import CHAOS, Fleet
from .run import Run


def main() -> int:
    """Parses the command line, runs, reports."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--peer", type=Path, required=True, help="the Rust program")
    parser.add_argument(
        "--elixir", type=Path, help="ebin directory; without it, no BEAM takes part"
    )
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--pause-us", type=int, default=4000, help="mean pause between steps")
    parser.add_argument("--own-mounts", action="store_true", help="this mount namespace is ours")
    options = parser.parse_args()

    results = CHAOS / "results"
    results.mkdir(exist_ok=True)
    print(f"seed {options.seed}, {options.seconds:.0f} s; log and plot in {results}", flush=True)
    # Told to end, it ends its processes and removes what they left, as after a ^C.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    arena = Arena(options.own_mounts)
    if not arena.mounted:
        print("no mount of our own: the file system is not going to be filled", flush=True)
    with (results / f"chaos-{options.seed}.stderr.log").open("wb") as errors:
        fleet = Fleet(options.peer.resolve(), options.elixir, errors)
        run = Run(options.seed, options.seconds, arena, fleet, results, options.pause_us)
        try:
            run.begin()
            run.act_for(options.seconds)
            run.finish()
        finally:
            fleet.kill_all()
            arena.close()
    report(run, results / f"chaos-{options.seed}")
    return 1 if run.verdict.failed else 0


def report(run: Run, stem: Path) -> None:
    """Prints the tables, writes the figures and the plot."""
    run.meters.plot(stem.with_suffix(".png"), f"chaos, seed {run.seed}, {run.elapsed:.0f} s")
    print(f"\nwhat was done in {run.elapsed:.0f} s, by {run.fleet.spawned} processes:")
    for what, count in sorted(run.judge.done.items()):
        print(f"  {what:<44}{count:>10}")
    print("\nlong-lived processes, after warming up:")
    for _, _, figures in run.meters.growth():
        print(f"  {figures}")
    print(
        f"\nslowest: a dead reader counted for {run.judge.slowest_count / 1e9:.2f} s, "
        f"an ownerless segment there for {run.judge.slowest_removal / 1e9:.2f} s "
        f"(grace {run.judge.grace / 1e9:.1f} s)\n"
    )
    stem.with_suffix(".json").write_text(
        json.dumps(
            {
                "seed": run.seed,
                "seconds": run.elapsed,
                "done": run.judge.done,
                "promises": {n: vars(p) for n, p in run.verdict.promises.items()},
                "slowest_count_s": run.judge.slowest_count / 1e9,
                "slowest_removal_s": run.judge.slowest_removal / 1e9,
            },
            indent=1,
        )
    )
    print("promises:")
    print(run.verdict.table(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
