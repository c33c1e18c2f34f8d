"""Records as pictures: masks per second of every contestant, and how near each stage comes.

Needs matplotlib, of the extra `bench`. Nothing here touches pyplot's global state or a display.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cris_bench.record.rows import Role, Row, Scope
from cris_bench.record.schema import Parity, Record
from cris_bench.report.reached import reached
from cris_bench.report.scope import FAILED, TITLES
from cris_deploy.errors import InputError
from cris_deploy.files import make_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_SCOPES: Final = (Scope.NETWORK, Scope.DEVICE, Scope.END_TO_END, Scope.FROM_BYTES, Scope.EXPRESSION)
# Okabe and Ito's palette, told apart with any colour vision.
_ROLE_COLOURS: Final = {Role.BASELINE: "#7f7f7f", Role.PEER: "#56b4e9", Role.ENGINE: "#d55e00"}
_ROLE_NAMES: Final = {
    Role.BASELINE: "PyTorch eager",
    Role.PEER: "peers",
    Role.ENGINE: "cris-deploy",
}
_STAGE_COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
_PALEST: Final = 0.4  # opacity of the last of several records; the first has 1
_WIDTH: Final = 9.0  # inches
_BAR: Final = 0.24  # inches of a bar with the gap to the next one
_PANEL: Final = 1.0  # inches of a panel's title, axis and margins
_FILL: Final = 0.84  # of a contestant's unit is bars, the rest tells it from the next
_ROOM: Final = 1.35  # axis over longest bar: what its label takes

_Group = tuple[Scope, int, int]


@dataclass(frozen=True)
class _Bar:
    """A bar with the words behind it; `low` and `high` are the ends of its whisker."""

    place: float
    length: float
    low: float
    high: float
    colour: str
    opacity: float
    words: str
    diamond: float | None = None


def draw(records: Mapping[str, Record], folder: str | Path) -> list[Path]:
    """Draw `speed` and, if stages and ceilings were measured, `ceiling`, each as SVG and PNG.

    Args:
        records: Name in the legend -> record.
        folder: Where to; made if missing.

    Returns:
        The PNG files, each of which has an SVG beside it; empty if there is nothing to draw.

    Raises:
        InputError: matplotlib is not installed, or the files cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError(
            f"plots need matplotlib ({error}): pip install 'cris-deploy[bench]'"
        ) from None
    drawn = {"speed": speed_figure, "ceiling": ceiling_figure}
    target, paths = make_folder(Path(folder)), []
    # A fixed salt for identifiers and no date: the same records give the same file.
    with mpl.rc_context({"svg.hashsalt": "cris-bench", "font.size": 9}):
        for name, make in drawn.items():
            figure = make(records)
            if figure is None:
                continue
            try:
                figure.savefig(target / f"{name}.svg", metadata={"Date": None})
                figure.savefig(target / f"{name}.png", dpi=150)
            except OSError as error:
                raise InputError(
                    f"{target / name} cannot be written: {error.strerror or error}"
                ) from error
            paths.append(target / f"{name}.png")
    return paths


def speed_figure(records: Mapping[str, Record]) -> Figure | None:
    """Masks per second: a panel for each scope, batch and number of expressions; None if none."""
    from matplotlib.lines import Line2D

    rows = [row for record in records.values() for row in record.rows if row.scope in _SCOPES]
    groups = sorted({_group(row) for row in rows}, key=lambda g: (_SCOPES.index(g[0]), *g[1:]))
    if not groups:
        return None
    names = {g: list(dict.fromkeys(row.name for row in rows if _group(row) == g)) for g in groups}
    figure, panels = _panels([len(names[group]) * len(records) for group in groups])
    paper = next((r.paper_fps for r in records.values() if r.paper_fps is not None), None)
    with_paper = paper is not None and (Scope.NETWORK, 1, 1) in groups
    for panel, group in zip(panels, groups, strict=True):
        bars = [
            _speed_bar(record, row, names[group].index(row.name), which, len(records))
            for which, record in enumerate(records.values())
            for row in record.rows
            if _group(row) == group
        ]
        _draw_bars(panel, bars, _FILL / len(records))
        scope, batch, expressions = group
        title = TITLES[scope]
        if (batch, expressions) != (1, 1):
            title += f", batch {batch}, {expressions} expressions an image"
        _label(panel, title, "masks per second, and x PyTorch eager", names[group])
        if paper is not None and group == (Scope.NETWORK, 1, 1):
            panel.axvline(paper, color="black", linestyle="--", linewidth=1, zorder=0)
            panel.set_xlim(0, max(panel.get_xlim()[1], paper * 1.05))
    colours = {_ROLE_NAMES[role]: _ROLE_COLOURS[role] for role in Role}
    line = Line2D([], [], color="black", linestyle="--", label=f"paper, V100: {paper} (Table 1)")
    _legend(figure, colours, [line] if with_paper else [], list(records))
    return figure


def ceiling_figure(records: Mapping[str, Record]) -> Figure | None:
    """Shares of the measured matrix rate and bandwidth that stages reached; None if none."""
    from matplotlib.lines import Line2D

    entries = [
        (which, entry, entry.ceiling, entry.matrix_share, entry.copy_share)
        for which, record in enumerate(records.values())
        for entry in reached(record)
        if (entry.work.batch, entry.work.expressions) == (1, 1)
    ]
    stages = list(dict.fromkeys(entry.work.stage for _, entry, *_ in entries))
    keys = list(dict.fromkeys((which, e.work.name) for which, e, c, *_ in entries if c is not None))
    if not keys:
        return None
    figure, (panel,) = _panels([len(keys) * len(stages)])
    bars = []
    for which, entry, ceiling, matrix, copy in entries:
        if ceiling is None or matrix is None or copy is None:
            continue
        stage = stages.index(entry.work.stage)
        bars.append(
            _Bar(
                keys.index((which, entry.work.name)) + _offset(stage, len(stages)),
                100 * matrix,
                100 * matrix,
                100 * matrix,
                _STAGE_COLOURS[stage % len(_STAGE_COLOURS)],
                1.0,
                f"{matrix:.0%} of {ceiling.matrix_ops_per_s / 1e9:,.0f} Gop/s "
                f"({ceiling.compute}), {1e3 * entry.work.seconds:.1f} ms",
                100 * copy,
            )
        )
    _draw_bars(panel, bars, _FILL / len(stages))
    several = len(records) > 1
    labels = [f"{name}\n{list(records)[which]}" if several else name for which, name in keys]
    _label(panel, "Stages against this machine's ceilings", "percent of the ceiling", labels)
    colours = {name: _STAGE_COLOURS[i % len(_STAGE_COLOURS)] for i, name in enumerate(stages)}
    diamond = Line2D([], [], color="black", linestyle="", marker="D", markeredgecolor="white")
    diamond.set_label("of the bandwidth, by reading the weights once")
    _legend(figure, colours, [diamond], [])
    return figure


def _group(row: Row) -> _Group:
    return row.scope, row.batch, row.expressions


def _speed_bar(record: Record, row: Row, place: int, which: int, records: int) -> _Bar:
    rates = [row.masks / seconds for seconds in row.seconds]
    low, _, high = statistics.quantiles(rates, n=4) if len(rates) > 3 else (row.fps,) * 3
    words = [f"{row.fps:.2f}"]
    if row.ratio is not None:
        words.append(f"{row.ratio:.2f} x")
    if row.noisy:
        words.append("noisy")
    if row.bundle is not None and record.bundles[row.bundle].parity is Parity.FAILED:
        words.append(FAILED)
    return _Bar(
        place + _offset(which, records),
        row.fps,
        min(low, row.fps),
        max(high, row.fps),
        _ROLE_COLOURS[row.role],
        _opacity(which, records),
        ", ".join(words),
    )


def _offset(index: int, count: int) -> float:
    """Where the bar of an index stands among so many in one unit of the axis."""
    return ((index + 0.5) / count - 0.5) * _FILL


def _panels(bars: Sequence[int]) -> tuple[Figure, list[Axes]]:
    """A figure with a panel for each number of bars, one below the other."""
    from matplotlib.figure import Figure

    heights = [count * _BAR + _PANEL for count in bars]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.4), layout="constrained")
    grid = figure.subplots(len(bars), 1, squeeze=False, height_ratios=heights)
    return figure, [panel for (panel,) in grid]


def _draw_bars(panel: Axes, bars: Iterable[_Bar], height: float) -> None:
    longest = 0.0
    for bar in bars:
        panel.barh(
            bar.place, bar.length, height * 0.92, color=bar.colour, alpha=bar.opacity, zorder=2
        )
        if bar.high > bar.low:
            ends = [[bar.length - bar.low], [bar.high - bar.length]]
            panel.errorbar(
                bar.length, bar.place, xerr=ends, color="black", capsize=2, linewidth=0.8, zorder=3
            )
        if bar.diamond is not None:
            panel.plot(
                bar.diamond, bar.place, "D", color="black", markeredgecolor="white", zorder=4
            )
        end = max(bar.high, bar.diamond or 0.0)
        longest = max(longest, end)
        panel.annotate(
            bar.words,
            (end, bar.place),
            (6, 0),
            textcoords="offset points",
            verticalalignment="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            zorder=5,
        )
    panel.set_xlim(0, longest * _ROOM)


def _label(panel: Axes, title: str, axis: str, names: Sequence[str]) -> None:
    panel.set_title(title, loc="left", fontweight="bold")
    panel.set_xlabel(axis)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.4, -0.6)  # the first on top
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="x", color="#dddddd", zorder=0)
    panel.set_axisbelow(True)


def _legend(
    figure: Figure, colours: Mapping[str, str], marks: Sequence[Line2D], records: Sequence[str]
) -> None:
    """Colours, then marks, then the shades of several records."""
    from matplotlib.patches import Patch

    handles = [*(Patch(color=colour, label=name) for name, colour in colours.items()), *marks]
    if len(records) > 1:
        handles += [
            Patch(color="black", alpha=_opacity(which, len(records)), label=name)
            for which, name in enumerate(records)
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)


def _opacity(which: int, records: int) -> float:
    return 1 - (1 - _PALEST) * which / max(1, records - 1)
