"""A record as pictures: masks per second of every contestant, and how they grow with the load.

Needs matplotlib, of the extra `bench`. Nothing here touches pyplot's global state or a display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from cris_bench.record.intervals import interval, times_eager
from cris_bench.record.rows import Role, Row, Scope
from cris_bench.record.schema import Parity, Record
from cris_bench.report.scope import FAILED, TITLES
from cris_deploy.errors import InputError
from cris_deploy.files import make_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# File -> its panels.
_SCOPES: Final = {
    "network": (Scope.NETWORK, Scope.DEVICE),
    "calls": (Scope.END_TO_END, Scope.FROM_BYTES, Scope.EXPRESSION),
}
# Okabe and Ito's palette, told apart with any colour vision.
_COLOURS: Final = {Role.BASELINE: "#7f7f7f", Role.PEER: "#56b4e9", Role.ENGINE: "#d55e00"}
_ROLES: Final = {
    Role.BASELINE: "PyTorch eager",
    Role.PEER: "peers",
    Role.ENGINE: "cris-deploy",
}
_WIDTH: Final = 9.0  # inches
_BAR: Final = 0.24  # inches of a bar with the gap to the next one
_PANEL: Final = 1.0  # inches of a panel's title, axis and margins
_LINES: Final = 4.0  # inches of a panel of lines
_ROOM: Final = 1.9  # axis over longest bar: what its label takes

_Shape = tuple[Scope, int, int]


def draw(records: Mapping[str, Record], folder: str | Path) -> list[Path]:
    """Draw `NAME-network.svg`, `NAME-calls.svg` and `NAME-throughput.svg` of each record.

    What a record has not measured has no file.

    Args:
        records: Name -> record.
        folder: Where to; made if missing.

    Returns:
        The files; the same records give the same files.

    Raises:
        InputError: matplotlib is not installed, or the files cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError(
            f"plots need matplotlib ({error}): pip install 'cris-deploy[bench]'"
        ) from None
    target, paths = make_folder(Path(folder)), []
    # A fixed salt for identifiers and no date: the same records give the same file.
    # Words stay words: a tenth of the size of their outlines.
    with mpl.rc_context({"svg.hashsalt": "cris-bench", "svg.fonttype": "none", "font.size": 9}):
        for name, record in records.items():
            figures = {kind: speed_figure(record, scopes) for kind, scopes in _SCOPES.items()}
            figures["throughput"] = throughput_figure(record)
            for kind, figure in figures.items():
                if figure is None:
                    continue
                path = target / f"{name}-{kind}.svg"
                try:
                    figure.savefig(path, metadata={"Date": None})
                except OSError as error:
                    said = error.strerror or error
                    raise InputError(f"{path} cannot be written: {said}") from error
                paths.append(path)
    return paths


def speed_figure(record: Record, scopes: Sequence[Scope]) -> Figure | None:
    """Masks per second with 95% intervals: a panel for each scope, batch and number of expressions.

    None if the record has no rates of these scopes.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shapes: dict[_Shape, list[Row]] = {}
    for row in sorted(record.rows, key=lambda row: row.batch * row.expressions):
        if row.scope in scopes:
            shapes.setdefault((row.scope, row.batch, row.expressions), []).append(row)
    if not shapes:
        return None
    order = sorted(shapes, key=lambda shape: (scopes.index(shape[0]), *shape[1:]))
    heights = [len(shapes[shape]) * _BAR + _PANEL for shape in order]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.4), layout="constrained")
    grid = figure.subplots(len(shapes), 1, squeeze=False, height_ratios=heights)
    for (panel,), shape in zip(grid, order, strict=True):
        _draw_rates(panel, record, sorted(shapes[shape], key=lambda row: row.fps))
        panel.set_title(_title(shape), loc="left", fontweight="bold")
    handles = [Patch(color=_COLOURS[role], label=_ROLES[role]) for role in Role]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def throughput_figure(record: Record) -> Figure | None:
    """Masks per second by the batch of a pass, and by the number of clients; None if neither is."""
    from matplotlib.figure import Figure

    lines: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in record.rows:
        if row.scope is Scope.NETWORK and row.expressions == 1:
            by_name = lines.setdefault("images of a pass", {})
            by_name.setdefault(row.name, []).append((row.batch, row.fps))
    for entry in record.clients:
        by_name = lines.setdefault("clients", {})
        by_name.setdefault(entry.title, []).append((entry.threads, entry.throughput))
    lines = {axis: names for axis, names in lines.items() if max(map(len, names.values())) > 1}
    if not lines:
        return None
    figure = Figure(figsize=(_WIDTH, _LINES * len(lines)), layout="constrained")
    for (panel,), (axis, names) in zip(
        figure.subplots(len(lines), 1, squeeze=False), lines.items(), strict=True
    ):
        for name, points in names.items():
            numbers, rates = zip(*sorted(points), strict=True)
            panel.plot(numbers, rates, marker="o", markersize=3, label=name)
        panel.set_xlabel(axis)
        panel.set_ylabel("masks per second")
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        _plain(panel)
    return figure


def _title(shape: _Shape) -> str:
    scope, batch, expressions = shape
    size = "" if (batch, expressions) == (1, 1) else f", {batch} x {expressions} masks a pass"
    return f"{TITLES[scope]}{size}"


def _draw_rates(panel: Axes, record: Record, rows: Sequence[Row]) -> None:
    """One bar for each row, the fastest on top, with its interval and what has to be said of it."""
    for place, row in enumerate(rows):
        panel.barh(place, row.fps, 0.8, color=_COLOURS[row.role], zorder=2)
        found, end = interval(row.masks / np.asarray(row.seconds)), row.fps
        if found is not None:
            ends = [[max(0.0, row.fps - found.low)], [max(0.0, found.high - row.fps)]]
            panel.errorbar(row.fps, place, xerr=ends, color="black", capsize=2, linewidth=0.8)
            end = max(end, found.high)
        words = [f"{row.fps:.2f}"]
        if row.role is not Role.BASELINE and (faster := times_eager(row, record.rows)):
            words.append(f"{faster} x eager")
        if row.bundle is not None and record.bundles[row.bundle].parity is Parity.FAILED:
            words.append(FAILED)
        label = ", ".join(words)
        panel.annotate(label, (end, place), (6, 0), textcoords="offset points", va="center")
    panel.set_xlim(0, max(row.fps for row in rows) * _ROOM)
    panel.set_xlabel("masks per second, and x PyTorch eager fp32 with its 95% interval")
    panel.set_yticks(range(len(rows)), [row.name for row in rows])
    _plain(panel)


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", color="#dddddd", zorder=0)
    panel.set_axisbelow(True)
