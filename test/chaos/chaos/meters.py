"""Memory, mappings and descriptors of long-lived processes over time, and whether they grow."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .fleet import Child

KEEP = 4000
WARM_UP = 0.4
"""Part of the run that does not count: buffers and caches fill up."""


@dataclass
class Series:
    """What was measured of one process: seconds, KiB, KiB, counts."""

    label: str
    rows: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    stride: int = 1
    skipped: int = 0

    def add(self, row: tuple[float, float, float, float, float]) -> None:
        """Adds a row; a long series is thinned, evenly."""
        self.skipped += 1
        if self.skipped < self.stride:
            return
        self.skipped = 0
        self.rows.append(row)
        if len(self.rows) > KEEP:
            self.rows = self.rows[::2]
            self.stride *= 2


# What a linear regression may gain over the part of the run that counts: the larger of a number and
# a part of the mean.
METERS = {
    1: ("resident memory (KiB)", 12_288, 0.15),
    2: ("anonymous memory (KiB)", 8_192, 0.15),
    3: ("descriptors", 6, 0.25),
    4: ("mappings", 16, 0.15),
}


class Meters:
    """Measures, judges and plots."""

    def __init__(self) -> None:
        self.series: dict[int, Series] = {}

    def measure(self, child: Child, seconds: float) -> None:
        """Adds a row for a living process."""
        base = Path("/proc") / str(child.pid)
        try:
            status = dict(line.split(":", 1) for line in (base / "status").read_text().splitlines())
            descriptors = len(os.listdir(base / "fd"))
            mappings = (base / "maps").read_bytes().count(b"\n")
        except OSError:
            return  # it ended in this moment
        if "VmRSS" not in status:
            return
        label = f"{child.language} {child.role} {child.uid}"
        series = self.series.setdefault(child.uid, Series(label))
        memory = [float(status[key].split()[0]) for key in ("VmRSS", "RssAnon")]
        series.add((seconds, memory[0], memory[1], descriptors, mappings))

    def growth(self) -> list[tuple[str, bool, str]]:
        """For each process and meter: its name, whether it is flat, and the figures."""
        found = []
        for series in self.series.values():
            rows = np.array(series.rows)
            if len(rows) < 8:
                continue
            rows = rows[rows[:, 0] >= rows[-1, 0] * WARM_UP]
            span = rows[-1, 0] - rows[0, 0]
            for column, (name, floor, part) in METERS.items():
                values = rows[:, column]
                gained = np.polyfit(rows[:, 0], values, 1)[0] * span
                bound = max(floor, part * values.mean())
                figures = (
                    f"{series.label}: {name} mean {values.mean():.0f}, "
                    f"gained {gained:+.1f} in {span:.0f} s (bound {bound:.0f})"
                )
                found.append((f"{series.label} {name}", bool(gained <= bound), figures))
        return found

    def plot(self, path: Path, title: str) -> None:
        """Draws everything over time."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(len(METERS), 1, figsize=(11, 13), sharex=True)
        for axis, (column, (name, _, _)) in zip(axes, METERS.items(), strict=True):
            for series in self.series.values():
                rows = np.array(series.rows)
                if len(rows):
                    axis.plot(rows[:, 0], rows[:, column], label=series.label)
            axis.set_ylabel(name)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        axes[0].set_title(title)
        axes[0].legend(fontsize=8)
        axes[-1].set_xlabel("seconds")
        figure.tight_layout()
        figure.savefig(path, dpi=110)
        plt.close(figure)
