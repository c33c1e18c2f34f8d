"""A head-to-head as data, and as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cris_bench.quantisers.half import HalfRow
from cris_bench.quantisers.judge import Accuracy, Interval
from cris_bench.record.machine import Machine
from cris_bench.report.section import Section

FLOAT32 = "float32"
FORMAT = 1


@dataclass(frozen=True)
class Made:
    """What came of a maker.

    Attributes:
        name: The maker's.
        says: How it makes graphs.
        folder: Name of the bundle's folder; None if there is none.
        seconds: That it took.
        problem: What went wrong.
    """

    name: str
    says: str
    folder: str | None
    seconds: float
    problem: str | None = None


@dataclass(frozen=True)
class Ran:
    """A bundle in a backend.

    Attributes:
        backend: Its name.
        data: Accuracy on the data set; None if none was given.
        pairs: Accuracy on pairs without a truth; None if none were given.
        speedup: Over the float32 bundle in the same backend; None if nothing was timed.
        seconds: The network alone, round by round.
        problem: Why it did not run.
    """

    backend: str
    data: Accuracy | None = None
    pairs: Accuracy | None = None
    speedup: Interval | None = None
    seconds: tuple[float, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Row:
    """A maker's bundle.

    Attributes:
        made: Who made it.
        bytes: Of its graphs and weights.
        int8: Share of the multiply-adds whose inputs are both int8.
        ran: In each backend.
    """

    made: Made
    bytes: int
    int8: float
    ran: tuple[Ran, ...]


@dataclass(frozen=True)
class Record:
    """A run of `python -m cris_bench.quantisers measure`."""

    created: str
    command: tuple[str, ...]
    commit: str | None
    machine: Machine
    checkpoint_sha256: str
    expressions: int
    pairs: int
    rounds: int
    rows: tuple[Row, ...]
    format: int = FORMAT


@dataclass(frozen=True)
class HalfRecord:
    """A run of `python -m cris_bench.quantisers half`."""

    created: str
    command: tuple[str, ...]
    commit: str | None
    machine: Machine
    checkpoint_sha256: str
    pairs: int
    rows: tuple[HalfRow, ...]
    format: int = FORMAT


def sections(record: Record) -> Iterator[Section]:
    """A table for each backend."""
    columns = (
        "int8 by",
        "x fp32",
        "mIoU",
        "points from fp32",
        "IoU with fp32",
        "worst r, data",
        "worst r, pairs",
        "MB",
        "int8",
    )
    backends = dict.fromkeys(ran.backend for row in record.rows for ran in row.ran)
    for backend in backends:
        rows = []
        for row in record.rows:
            ran = next((one for one in row.ran if one.backend == backend), None)
            problem = row.made.problem or (ran and ran.problem)
            if ran is None or problem:
                rows.append((row.made.name, problem or "", *[""] * (len(columns) - 2)))
                continue
            data, pairs = ran.data, ran.pairs
            rows.append(
                (
                    row.made.name,
                    _interval(ran.speedup, 2),
                    "" if data is None or data.mean_iou is None else f"{data.mean_iou:.2f}",
                    _interval(data.difference if data else None, 2),
                    f"{data.mask_iou:.4f}" if data else "",
                    f"{data.worst_correlation:.4f}" if data else "",
                    f"{pairs.worst_correlation:.4f}" if pairs else "",
                    f"{row.bytes / 1e6:.1f}",
                    f"{row.int8:.0%}",
                )
            )
        intro = (
            f"{backend}; {record.expressions} expressions of the data set, {record.pairs} pairs, "
            f"{record.rounds} rounds"
        )
        yield Section(backend, (intro,), columns, tuple(rows))


def _interval(found: Interval | None, digits: int) -> str:
    if found is None:
        return ""
    value, low, high = (f"{x:.{digits}f}" for x in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"
