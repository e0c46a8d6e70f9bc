"""Draws what was measured: plot.py ROWS.json TARGET writes TARGET.svg and TARGET.png."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WAYS = {
    "handle": ("handles", "#0072b2", "o"),
    "pipe": ("a pipe", "#e69f00", "s"),
    "json": ("JSON, base64", "#999999", "^"),
}
WORK = {
    "negative": "negative: the way there and back",
    "blur": "blur of pictures (numpy)",
    "spectrum": "spectrum of signals (FFT)",
    "aggregate": "aggregation of a table (Arrow)",
}


def main() -> None:
    rows = json.loads(Path(sys.argv[1]).read_text())
    tools = list(dict.fromkeys(row["tool"] for row in rows))
    figure, axes = plt.subplots(
        1, len(tools), figsize=(3.4 * len(tools), 3.4), layout="constrained", squeeze=False
    )
    for axis, tool in zip(axes[0], tools, strict=True):
        for way, (label, colour, marker) in WAYS.items():
            own = [row for row in rows if (row["tool"], row["way"]) == (tool, way)]
            axis.plot(
                [row["bytes"] / 1e6 for row in own],
                [row["median_ms"] for row in own],
                color=colour,
                marker=marker,
                label=label,
            )
        axis.set(xscale="log", yscale="log", xlabel="data, MB", title=WORK.get(tool, tool))
        axis.title.set_fontsize(10)
        axis.grid(visible=True, which="major", alpha=0.3)
    axes[0][0].set_ylabel("whole call, ms")
    axes[0][0].legend(frameon=False)
    for ending in ("svg", "png"):
        figure.savefig(
            f"{sys.argv[2]}.{ending}", dpi=120, metadata={"svg": {"Date": None}}.get(ending)
        )


if __name__ == "__main__":
    main()
