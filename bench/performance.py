"""Makes docs/performance.md, bench/results/peers.md and the plots from the results that are kept.

    python bench/performance.py                 write them all (plots need matplotlib)
    python bench/performance.py --check         is docs/performance.md what the kept results say?
    python bench/performance.py --results DIR [--no-page]

Nothing is measured here, and nothing but the results goes in: the same results give the same page.
What was promised is in bench/targets.json, what was measured in results/latest.json (`make bench`)
and results/peers.json (`make bench-peers`), and why a row is missed or lost in bench/reasons.json.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results"
REASONS = ROOT / "bench" / "reasons.json"
EVEN = 0.05
"""Closer than this is even: two runs of the same thing differ as much."""

Figure = dict[str, Any]

ABOUT = json.loads((ROOT / "bench" / "peers" / "about.json").read_text())
PEERS: dict[str, dict[str, str]] = ABOUT["peers"]
"""Name, the mode in which it is measured, what it guarantees."""
SECTIONS: dict[str, dict[str, str]] = ABOUT["sections"]
"""Name and words of each section, in the order of the page."""

Row = tuple[str, int, str]
"""The group of a figure, its row's number (a size or a count) and its peer."""


# -- numbers ------------------------------------------------------------------------------------


def human(size: int) -> str:
    """A size as a person writes it."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1_000_000, "MB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def digits(value: float) -> str:
    """Three of them."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def amount(value: float, unit: str) -> str:
    """A measured number as a person writes it."""
    if unit == "count":
        return f"{value:,.0f}"
    if unit == "per_second":
        for factor, name in ((1e6, "M/s"), (1e3, "k/s")):
            if value >= factor:
                return f"{digits(value / factor)} {name}"
        return f"{value:.0f} /s"
    for factor, name in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if value >= factor:
            return f"{digits(value / factor)} {name}"
    return f"{digits(value)} ns"


def loss(figure: Figure) -> float:
    """By which part ours is worse than the peer: above 0 is lost, below 0 won."""
    ours, theirs = figure["ours"], figure["yardstick"]["value"]
    if figure["unit"] == "count":
        return float(ours > theirs)
    ratio = figure.get("ratio")
    if ratio is None:
        # Nothing to divide by: the peer came to no value at all, or we did.
        return -1.0 if ours > theirs else float(ours < theirs)
    if figure["unit"] == "per_second":
        return 1 / ratio - 1 if ratio > 0 else float("inf")
    return ratio - 1


def cell(figure: Figure) -> str:
    """Ratio, ours, theirs."""
    ours = amount(figure["ours"], figure["unit"])
    theirs = amount(figure["yardstick"]["value"], figure["unit"])
    if figure["unit"] == "count":
        return f"{ours} / {theirs}"
    ratio = figure.get("ratio")
    lost = loss(figure) > EVEN
    if ratio is None:
        text = "starved" if loss(figure) < 0 else "-"
    else:
        text = f"{ratio:.2f}" if 0.01 <= ratio < 1000 else f"{ratio:.1e}"
    return f"{'**' if lost else ''}{text}{'**' if lost else ''} ({ours} / {theirs})"


# -- tables -------------------------------------------------------------------------------------


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def locate(figure: Figure) -> Row:
    """Which table a figure belongs to, in which row, of which peer."""
    section, *steps, peer = figure["id"].split("/")[1:]
    number = next((int(step) for step in steps if step.isdigit()), 0)
    words = [step for step in steps if not step.isdigit()]
    return "/".join([section, *words]), number, peer


def grouped(figures: list[Figure]) -> dict[str, dict[int, dict[str, Figure]]]:
    """Group, row, peer; in the order in which they were measured."""
    groups: dict[str, dict[int, dict[str, Figure]]] = defaultdict(lambda: defaultdict(dict))
    for figure in figures:
        group, number, peer = locate(figure)
        groups[group][number][peer] = figure
    return groups


def label(group: str, number: int, figure: Figure) -> str:
    """What a row is called."""
    section = group.split("/")[0]
    if section == "crowd":
        return f"{number:,} processes"
    if section == "segments" or figure.get("size") is None:
        return f"among {number:,}"
    return human(number)


def title(group: str, figure: Figure, whole: bool = False) -> str:
    """What a table is called; `whole`: wherever it stands."""
    name = figure["name"].split(", among")[0]
    if group == "crowd":
        return "a write, with a crowd" if whole else "write"
    if whole:
        return f"{name}, Python" if group.startswith("python/") else name
    return name.replace(", Python", "").replace(", Elixir", "")


def tables(figures: list[Figure], only: Callable[[str], bool] = lambda _: True) -> str:
    """One for each thing that was measured: a row for each size, a column for each peer."""
    text = ""
    for group, rows in grouped(figures).items():
        if not only(group):
            continue
        peers = list(dict.fromkeys(peer for row in rows.values() for peer in row))
        first = next(iter(next(iter(rows.values())).values()))
        hops = [
            figure["hop_ns"]
            for row in rows.values()
            for figure in row.values()
            if figure.get("hop_ns")
        ]
        hop = (
            f" Core-to-core hop while these were measured: {min(hops):.0f} to {max(hops):.0f} ns."
            if hops
            else ""
        )
        text += f"\n**{title(group, first)}.**{hop}\n\n"
        lines = []
        for number in sorted(rows):
            row = rows[number]
            lines.append(
                [
                    label(group, number, next(iter(row.values()))),
                    *(cell(row[p]) if p in row else "" for p in peers),
                ]
            )
        text += table(["", *peers], lines)
    return text


def machine(run: dict[str, Any]) -> str:
    """Where and when."""
    quick = "; a short run, only indicative" if run.get("quick") else ""
    where = f"{run['cpu']}, {run['cpus']} CPUs, Linux {run['kernel']}"
    return f"{where}; commit {run['commit']}, {run['date']}{quick}"


# -- reasons ------------------------------------------------------------------------------------


def reason_for(ident: str, reasons: dict[str, str]) -> str:
    """The reason of the first pattern that fits."""
    for pattern, reason in reasons.items():
        if fnmatch.fnmatchcase(ident, pattern):
            return reason
    return "not known yet"


# -- the parts of the page ----------------------------------------------------------------------


def promises(latest: dict[str, Any], reasons: dict[str, str]) -> str:
    """Every promise beside what was measured; what is missed, and why."""
    rows = [row for row in latest["rows"] if row.get("target")]
    missed = [row for row in rows if not row["met"]]
    text = (
        f"{len(rows) - len(missed)} of {len(rows)} promised figures are met. "
        f"{machine(latest['run'])}. "
        "A ratio is ours to the yardstick, the median over samples in which both alternated.\n\n"
    )
    lines = []
    for row in rows:
        yard = row.get("yardstick")
        lines.append(
            [
                row["name"],
                human(row["size"]) if row.get("size") else "",
                row["target"],
                amount(row["ours"], row["unit"]),
                f"{amount(yard['value'], row['unit'])} {yard['name']}" if yard else "",
                f"{row['ratio']:.2f}" if row.get("ratio") is not None else "",
                f"{row['hop_ns']:.0f} ns" if row.get("hop_ns") else "",
                "yes" if row["met"] else "**no**",
            ]
        )
    text += table(
        ["what", "size", "promised", "measured", "yardstick", "ratio", "hop", "met"], lines
    )
    for target in latest.get("not_measured", []):
        text += f"\nNot measured: {target}.\n"
    for section in latest["run"].get("failed", []):
        text += f"\nFailed: {section}.\n"
    if missed:
        text += "\n### Missed\n\n"
        text += table(
            ["what", "size", "promised", "measured", "why"],
            [
                [
                    row["name"],
                    human(row["size"]) if row.get("size") else "",
                    row["target"],
                    amount(row["ours"], row["unit"])
                    + (f", {row['ratio']:.2f} times" if row.get("ratio") is not None else ""),
                    reason_for(row["id"], reasons),
                ]
                for row in missed
            ],
        )
    return text


def guarantees(report: dict[str, Any]) -> str:
    """Who is measured, how, and what each promises."""
    seen = list(dict.fromkeys(locate(figure)[2] for figure in all_figures(report)))
    rows = [list(PEERS[peer].values()) for peer in seen if peer in PEERS]
    text = table(["peer", "measured", "guarantees"], rows)
    versions = "; ".join(report.get("versions", {}).values())
    text += f"\nVersions, as bench/peers/Cargo.lock has them: {versions}.\n"
    for feature, reason in sorted(report.get("not_built", {}).items()):
        text += f"\nNot built: {feature}: {reason}.\n"
    return text


def all_figures(report: dict[str, Any]) -> list[Figure]:
    """Of all sections, in the order of the page."""
    return [
        figure
        for section in SECTIONS
        for figure in report["sections"].get(section, {}).get("figures", [])
    ]


def lost(report: dict[str, Any]) -> list[Figure]:
    """The figures in which a peer is ahead."""
    return [
        figure
        for figure in all_figures(report)
        if not locate(figure)[2].startswith("snakepit-") and loss(figure) > 0
    ]


def not_won(report: dict[str, Any], reasons: dict[str, str]) -> str:
    """Every figure in which a peer is ahead of us."""
    behind = lost(report)
    every = [
        figure for figure in all_figures(report) if not locate(figure)[2].startswith("snakepit-")
    ]
    clear = [figure for figure in behind if loss(figure) > EVEN]
    even = [figure for figure in behind if loss(figure) <= EVEN]
    text = (
        f"Of {len(every)} figures beside a peer, the peer is ahead in {len(behind)}: "
        f"in {len(clear)} by more than "
        f"{EVEN:.0%}, in {len(even)} by less, which two runs of the same thing differ by.\n"
    )
    if clear:
        text += "\n" + table(
            ["what", "peer", "where: ratio (ours / theirs)", "why"],
            [[*line, why] for line, why in lines_of(clear, reasons)],
        )
    if even:
        text += "\nWithin the noise:\n\n"
        lines = [line for line, _ in lines_of(even, {})]
        text += table(["what", "peer", "where: ratio (ours / theirs)"], lines)
    return text


def lines_of(behind: list[Figure], reasons: dict[str, str]) -> list[tuple[list[str], str]]:
    """All of them, a line for each thing, peer and reason."""
    lines: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for figure in behind:
        group, number, peer = locate(figure)
        why = reason_for(figure["id"], reasons)
        where = f"{label(group, number, figure)}: {cell(figure).replace('**', '')}"
        lines[title(group, figure, whole=True), peer, why].append(where)
    return [([what, peer, "; ".join(where)], why) for (what, peer, why), where in lines.items()]


def skipped(report: dict[str, Any]) -> str:
    """What was not measured, by reason."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for section in SECTIONS:
        for entry in report["sections"].get(section, {}).get("skipped", []):
            by_reason[entry["reason"]].append(entry["what"])
    lines = [
        f"- {'; '.join(dict.fromkeys(whats))}: {reason}.\n" for reason, whats in by_reason.items()
    ]
    for section in SECTIONS:
        if section not in report["sections"]:
            lines.append(f"- The section {section}: it was not run.\n")
        elif failed := report["sections"][section].get("failed"):
            lines.append(f"- The section {section} failed: {failed}.\n")
    return "".join(lines)


def torn(report: dict[str, Any]) -> str:
    """Torn values that were taken for whole, of all sections, a line for each peer."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0])
    for figure in all_figures(report):
        group, _, peer = locate(figure)
        if group.endswith("/torn"):
            sums[peer][0] += figure["ours"]
            sums[peer][1] += figure["yardstick"]["value"]
    return table(
        ["beside", "torn, ours", "torn, theirs"],
        [[peer, f"{a:,.0f}", f"{b:,.0f}"] for peer, (a, b) in sums.items()],
    )


PLOTS = {
    "one-thread": "peers-one-thread.svg",
    "two-processes": "peers-two-processes.svg",
    "crowd": "peers-crowd.svg",
    "messages": "peers-messages.svg",
}


def page(
    latest: dict[str, Any] | None, report: dict[str, Any] | None, reasons: dict[str, str]
) -> str:
    """docs/performance.md."""
    text = (
        "# Performance\n\n"
        "Made by `bench/performance.py` from what `make bench` and `make bench-peers` measured; "
        "not edited by hand. [bench/README.md](../bench/README.md) says how each is measured. "
        "Times belong to one machine; ratios travel "
        "better.\n\n## What is promised\n\n"
    )
    text += promises(latest, reasons) if latest else "`make bench` was not run.\n"
    text += "\n## Beside others\n\n"
    if not report:
        return text + "`make bench-peers` was not run.\n"
    text += (
        "Ours and all peers take turns within each run, on the same cores, with the same sizes "
        "and compiler flags. A cell is the ratio, ours to theirs, the median over the turns, then "
        "ours and theirs. Of times less is better, "
        "of rates (`/s`) more; **bold** is a ratio in which the peer is ahead by more than "
        f"{EVEN:.0%}. Ours runs without timestamps and notification, which the peers do not have "
        "either "
        "(`snakepit-defaults` is ours with both, `snakepit-pinned` ours read by `pin`).\n\n"
    )
    text += guarantees(report)
    text += "\n### What was not won\n\n" + not_won(report, reasons)
    text += "\n### Torn values\n\n"
    text += "Values that the reader was given as whole, of all that were looked at.\n\n"
    text += torn(report)
    for section, about in SECTIONS.items():
        entry = report["sections"].get(section)
        if not entry:
            continue
        text += f"\n### {about['name']}\n\n{about['words']} {machine(entry['run'])}.\n"
        if section in PLOTS:
            text += f"\n![{about['name']}](../bench/results/{PLOTS[section]})\n"
        # The page has what matters most of it; peers.md has all.
        text += tables(entry["figures"], lambda group: not group.endswith(("/p50", "/torn")))
    text += "\n### Not measured\n\n" + skipped(report)
    return text


def everything(report: dict[str, Any], reasons: dict[str, str]) -> str:
    """results/peers.md."""
    text = "# Peers\n\nAll figures; docs/performance.md explains them.\n"
    for section, about in SECTIONS.items():
        if entry := report["sections"].get(section):
            text += f"\n## {about['name']}\n\n{machine(entry['run'])}.\n" + tables(entry["figures"])
    return (
        text
        + "\n## Not won\n\n"
        + not_won(report, reasons)
        + "\n## Not measured\n\n"
        + skipped(report)
    )


# -- plots --------------------------------------------------------------------------------------


def series(report: dict[str, Any], group: str) -> dict[str, list[tuple[int, float]]]:
    """What a plot shows: for us and for each peer the number at each size."""
    lines: dict[str, dict[int, float]] = defaultdict(dict)
    section = group.split("/")[0]
    for figure in report["sections"].get(section, {}).get("figures", []):
        found, number, peer = locate(figure)
        if found != group:
            continue
        ours = "snakepit-in-place" if peer.endswith("in-place") else "snakepit"
        ours = "snakepit-polling" if peer.endswith("polling") else ours
        if peer == "snakepit-pinned":
            lines[peer][number] = figure["yardstick"]["value"]
        elif peer != "snakepit-defaults":
            lines[ours].setdefault(number, figure["ours"])
            lines[peer][number] = figure["yardstick"]["value"]
    return {name: sorted(points.items()) for name, points in lines.items()}


def plot(report: dict[str, Any], results: Path) -> None:
    """The plots, as SVG; the same results give the same bytes with the same matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "snakepit", "svg.fonttype": "none", "font.size": 8})
    panels = {
        "one-thread": [("one-thread/read", "read, ns"), ("one-thread/write", "write, ns")],
        "two-processes": [
            ("two-processes/flat-out/rate", "values read a second, writer flat out"),
            ("two-processes/flat-out/p99", "a read, P99, ns, writer flat out"),
        ],
        "crowd": [("crowd", "write of 64 B, ns; attached processes")],
        "messages": [
            ("messages/round-trip", "there and back, Rust, ns"),
            ("grpc/round-trip", "there and back, Python, ns"),
            ("port/round-trip", "there and back, Elixir, ns"),
        ],
    }
    for name, groups in panels.items():
        figure, axes = plt.subplots(1, len(groups), figsize=(5.5 * len(groups), 4.2), squeeze=False)
        for axis, (group, words) in zip(axes[0], groups, strict=True):
            for peer, points in series(report, group).items():
                points = [(x, y) for x, y in points if y > 0]
                ours = peer.startswith("snakepit")
                axis.plot(
                    *zip(*points, strict=True) if points else ([], []),
                    label=peer,
                    marker="o",
                    markersize=3 if ours else 2,
                    linewidth=2.5 if ours else 1,
                    linestyle="--" if "in-place" in peer or "polling" in peer else "-",
                )
            axis.set(
                xscale="log", yscale="log", title=words, xlabel="" if name == "crowd" else "bytes"
            )
            axis.grid(True, which="major", alpha=0.3)
            if axis.lines:
                axis.legend(fontsize=6)
        figure.tight_layout()
        figure.savefig(results / PLOTS[name], metadata={"Date": None})
        plt.close(figure)


# -- the command line ---------------------------------------------------------------------------


def load(path: Path) -> Any:
    """A file of JSON, if it is there."""
    return json.loads(path.read_text()) if path.exists() else None


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare only")
    parser.add_argument("--no-page", action="store_true", help="leave docs/performance.md alone")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    latest, report = load(given.results / "latest.json"), load(given.results / "peers.json")
    reasons = load(REASONS) or {}
    made = page(latest, report, reasons)
    if given.check:
        if not PAGE.exists() or PAGE.read_text() != made:
            print(
                "docs/performance.md is not what the results say: python bench/performance.py",
                file=sys.stderr,
            )
            return 1
        return 0
    if report:
        (given.results / "peers.md").write_text(everything(report, reasons))
        try:
            plot(report, given.results)
        except ImportError:
            print("no plots: matplotlib is missing here (make bench-peers has it)")
    if not given.no_page:
        PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
