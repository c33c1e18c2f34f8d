"""A soak's samples as a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

_PAUSED = "#dddddd"


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draw memory, descriptors and threads, and latency over minutes."""
    columns = record["samples"]
    minutes = np.array(columns["seconds"]) / 60
    with mpl.rc_context({"svg.hashsalt": "soak", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(9, 7), layout="constrained")
        memory, held, latency = figure.subplots(3, 1, sharex=True)
        for name, label in (("rss", "resident"), ("uss", "its own")):
            memory.plot(minutes, np.array(columns[name]) / 2**20, label=label)
        memory.set_ylabel("memory, MiB")
        for name in ("descriptors", "threads"):
            held.plot(minutes, columns[name], label=name, drawstyle="steps-post")
        held.set_ylabel("open")
        for name, label in (("p50", "median"), ("p95", "95th in 100"), ("most", "longest")):
            values = np.array([np.nan if value is None else value for value in columns[name]])
            latency.plot(minutes, values, label=label, linewidth=0.8)
        latency.set(ylabel="latency, ms", yscale="log", xlabel="minutes")
        for axes in (memory, held):
            axes.set_ylim(0)
        for axes in (memory, held, latency):
            edges = np.flatnonzero(np.diff([0, *columns["paused"], 0]))
            for begin, end in edges.reshape(-1, 2):
                axes.axvspan(minutes[begin], minutes[end - 1], color=_PAUSED, linewidth=0)
            axes.axvline(record["judged"]["settling_seconds"] / 60, color="black", linewidth=0.5)
            axes.legend(loc="lower right", frameon=False, ncols=3)
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle(f"cris-serve, {record['requests']:,} requests; gray: load paused")
        figure.savefig(path, format="svg", metadata={"Date": None})
