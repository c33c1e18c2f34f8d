"""95% intervals of medians, from the raw times of a record's rounds.

A median is drawn anew from as many rounds, taken with replacement; the middle 95% of such medians
are the interval (Efron's percentile bootstrap). Ratios are taken within rounds first, so that a
machine that drifts widens no interval. Rounds of one run share how its processes came to lie in
memory, which differs from run to run (`BETWEEN_RUNS`) and is added to every draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cris_bench.record.rows import AGAINST, Role, Row

LEAST_ROUNDS: Final = 6
"""Of five rounds not even the least and the largest enclose the median with 95%: 1 - 2 / 2^5."""
BETWEEN_RUNS: Final = 0.01
"""Standard deviation of a median from run to run beyond what its rounds show, as a share of it:
what 22 ratios of two runs have in excess (decision 19)."""
_DRAWS: Final = 4000
_ENDS: Final = (2.5, 97.5)  # percent

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with the ends of its 95% interval."""

    middle: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """The interval's width over its middle."""
        return (self.high - self.low) / self.middle

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def median_draws(values: Sequence[float] | Numbers, seed: int = 0) -> Numbers:
    """Medians that another run might have had, (4000,); the same for the same seed.

    Each is of as many values drawn with replacement, and off by what differs between runs.
    """
    given = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    drawn: Numbers = np.median(given[rng.integers(0, len(given), (_DRAWS, len(given)))], axis=1)
    return drawn * rng.normal(1.0, BETWEEN_RUNS, _DRAWS)


def interval(values: Sequence[float] | Numbers) -> Interval | None:
    """The median's interval; None of too few rounds to tell."""
    if len(values) < LEAST_ROUNDS:
        return None
    low, high = np.percentile(median_draws(values), _ENDS)
    return Interval(float(np.median(values)), float(low), float(high))


def enclosing(draws: Numbers, middle: float) -> Interval:
    """The interval of what was computed of draws, such as the quotient of two medians."""
    low, high = np.percentile(draws, _ENDS)
    return Interval(middle, float(low), float(high))


def round_ratios(slow: Row, fast: Row) -> Numbers:
    """How many times faster `fast` makes a mask, in each round of a race that both ran in.

    Rounds that only one of them has, as in a process of its own, are left out.
    """
    rounds = min(len(slow.seconds), len(fast.seconds))
    first, second = (np.asarray(row.seconds[:rounds]) / row.masks for row in (slow, fast))
    ratios: Numbers = first / second
    return ratios


def ratio(slow: Row, fast: Row) -> Interval | None:
    """The median of the ratios within rounds, with its interval; None of too few rounds."""
    return interval(round_ratios(slow, fast))


def baseline_of(row: Row, rows: Iterable[Row]) -> Row | None:
    """PyTorch eager's row that a row is held against; None if there is none."""
    wanted = AGAINST.get(row.scope), row.batch, row.expressions
    return next(
        (
            other
            for other in rows
            if other.role is Role.BASELINE
            and (other.scope, other.batch, other.expressions) == wanted
        ),
        None,
    )


def times_eager(row: Row, rows: Iterable[Row]) -> Interval | None:
    """How many times faster than PyTorch eager a row's masks are; None if it cannot be said."""
    slow = baseline_of(row, rows)
    return None if slow is None else ratio(slow, row)
