"""Like for like: the engine against the best of its peers in the same arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cris_bench.record.intervals import Interval, ratio, times_eager
from cris_bench.record.rows import Role, Row, Scope, arithmetic
from cris_bench.record.schema import Record
from cris_bench.report.section import Section, aligned


@dataclass(frozen=True)
class Pair:
    """The fastest of both sides in one race and arithmetic.

    Attributes:
        arithmetic: Of both, such as "int8".
        ours: The engine's row.
        peer: The best peer's, PyTorch eager included; None if none has this arithmetic.
        over_peer: How many times faster ours makes a mask; None of too few rounds.
        over_eager: The same against PyTorch eager in float32.
    """

    arithmetic: str
    ours: Row
    peer: Row | None
    over_peer: Interval | None
    over_eager: Interval | None


def pairs(record: Record) -> Iterator[Pair]:
    """Every race of the network, every arithmetic that the engine ran in."""
    rows = [row for row in record.rows if row.scope is Scope.NETWORK]
    for shape in dict.fromkeys((row.batch, row.expressions) for row in rows):
        raced = [row for row in rows if (row.batch, row.expressions) == shape]
        for kind in dict.fromkeys(arithmetic(row.compute) for row in raced):
            alike = [row for row in raced if arithmetic(row.compute) == kind]
            ours = _fastest([row for row in alike if row.role is Role.ENGINE])
            peer = _fastest([row for row in alike if row.role is not Role.ENGINE])
            if ours is not None:
                over = None if peer is None else ratio(peer, ours)
                yield Pair(kind, ours, peer, over, times_eager(ours, rows))


def _fastest(rows: list[Row]) -> Row | None:
    return min(rows, key=lambda row: row.mask_ms, default=None)


def like_section(record: Record) -> Section:
    """The headline of a record; a section without rows if nobody took part but the engine."""
    found = [pair for pair in pairs(record) if pair.peer is not None or pair.over_eager]
    times = aligned([pair.ours.mask_ms for pair in found])
    rows = tuple(
        (
            pair.arithmetic,
            str(pair.ours.batch),
            str(pair.ours.expressions),
            pair.ours.name,
            time,
            "none" if pair.peer is None else pair.peer.name,
            _said(pair.over_peer),
            _said(pair.over_eager),
        )
        for pair, time in zip(found, times, strict=True)
    )
    return Section(
        "Like for like",
        (
            "The engine's fastest against the fastest peer in the same arithmetic, the network "
            "alone, by mask: medians of the ratios within rounds with their 95% intervals.",
        ),
        (
            *("arithmetic", "images", "expressions", "ours", "ms a mask"),
            *("best peer", "x best peer", "x eager fp32"),
        ),
        rows,
        frozenset({"ours", "best peer"}),
    )


def _said(interval: Interval | None) -> str:
    return "" if interval is None else str(interval)
