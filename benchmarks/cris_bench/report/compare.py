"""`cris-bench compare A B`: what became slower or faster between two records."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cris_bench.record.file import read_record
from cris_bench.record.intervals import (
    LEAST_ROUNDS,
    Interval,
    Numbers,
    baseline_of,
    enclosing,
    median_draws,
    round_ratios,
)
from cris_bench.record.rows import Role, Row, Scope
from cris_bench.record.schema import Parity, Record
from cris_bench.report.scope import FAILED, TITLES
from cris_bench.report.section import Section, to_text
from cris_deploy.cli import Parser, guarded
from cris_deploy.documents import plain
from cris_deploy.errors import InputError

_PROGRAM: Final = "cris-bench compare"
# Between two runs on one machine these may change; that they do is often why one compares.
_CHANGING: Final = frozenset({"system", "python", "versions", "clock_mhz"})


@dataclass(frozen=True)
class Change:
    """A row that both records have.

    Attributes:
        before: Of the first record.
        after: Of the second.
        baselines: PyTorch eager's rows in both, if both have one and a ratio to it is compared.
        failed_parity: Whether the second's bundle failed its parity gate.
    """

    before: Row
    after: Row
    baselines: tuple[Row, Row] | None
    failed_parity: bool

    @property
    def by_ratio(self) -> bool:
        """Whether ratios to PyTorch eager are compared, from which the machine's drift cancels."""
        return self.baselines is not None

    @property
    def judged(self) -> bool:
        """Whether the change has a meaning in percent: a difference of two times has none."""
        return self.before.scope is not Scope.OVERHEAD

    @property
    def figures(self) -> tuple[float, float]:
        """What is compared: medians of ratios, or milliseconds of a mask."""
        old, new = (float(np.median(values)) for values in self._values())
        return old, new

    @property
    def slower(self) -> float:
        """By which share a mask takes longer than before, relative to PyTorch eager if possible."""
        old, new = self.figures
        return old / new - 1 if self.by_ratio else new / old - 1

    @property
    def interval(self) -> Interval | None:
        """`slower` with its 95% interval; None of too few rounds, or where nothing is judged."""
        values = self._values()
        if not self.judged or min(map(len, values)) < LEAST_ROUNDS:
            return None
        # Two runs are independent: so are the draws.
        old, new = (median_draws(each, seed) for seed, each in enumerate(values))
        draws = old / new if self.by_ratio else new / old
        return enclosing(draws - 1, self.slower)

    def regressed(self, limit: float) -> bool:
        """Whether it is slower by more than a share, the whole interval of it."""
        found = self.interval
        return found is not None and found.low > limit

    def _values(self) -> tuple[Numbers, Numbers]:
        if self.baselines is not None:
            old, new = self.baselines
            return round_ratios(old, self.before), round_ratios(new, self.after)
        old_ms, new_ms = (
            np.asarray(row.seconds) * 1e3 / row.masks for row in (self.before, self.after)
        )
        return old_ms, new_ms


@dataclass(frozen=True)
class Comparison:
    """Two records side by side.

    Attributes:
        changes: Rows that both have, in the first's order.
        gone: Rows that only the first has.
        new: Rows that only the second has.
        unlike: Why the records are not of one kind, a phrase each.
        also: What else differs, a phrase each.
    """

    changes: tuple[Change, ...]
    gone: tuple[Row, ...]
    new: tuple[Row, ...]
    unlike: tuple[str, ...]
    also: tuple[str, ...]

    def regressions(self, limit: float) -> tuple[Change, ...]:
        """What became slower by more than a share, for certain."""
        return tuple(change for change in self.changes if change.regressed(limit))


def compare(before: Record, after: Record) -> Comparison:
    """Pair the rows of two records by scope, contestant, batch and number of expressions.

    Raises:
        InputError: they have no row in common.
    """
    old, new = ({_key(row): row for row in record.rows} for record in (before, after))
    changes = tuple(
        Change(row, new[key], _baselines(row, before, new[key], after), _failed(after, new[key]))
        for key, row in old.items()
        if key in new
    )
    if not changes:
        raise InputError("the records have no row in common: measure the same scopes in both")
    return Comparison(
        changes,
        gone=tuple(row for key, row in old.items() if key not in new),
        new=tuple(row for key, row in new.items() if key not in old),
        unlike=_unlike(before, after),
        also=_differences(before.machine, after.machine, _CHANGING),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two records. Exit 0, 1 beyond --max-regression, or 2 for unusable input."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))

    def run() -> int:
        limit = None if args.max_regression is None else _share(args.max_regression)
        comparison = compare(read_record(args.before), read_record(args.after))
        if comparison.unlike and not args.force:
            raise InputError(
                f"{args.before} and {args.after} are not like with like: "
                f"{'; '.join(comparison.unlike)}; --force compares them all the same"
            )
        if limit is not None and all(change.interval is None for change in comparison.changes):
            raise InputError(
                f"--max-regression judges intervals, which take {LEAST_ROUNDS} rounds, and no row "
                "has as many in both records: measure longer"
            )
        print(to_text([_section(comparison, limit)]))
        return int(limit is not None and bool(comparison.regressions(limit)))

    return guarded(_PROGRAM, run)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Compare two records of cris-bench row by row: the ratios to PyTorch eager "
        "where both have one, since a machine's drift cancels in them, else milliseconds a mask.",
        examples=(
            "cris-bench compare before.json after.json",
            "cris-bench compare before.json after.json --max-regression 5%",
        ),
    )
    parser.add_argument("before", type=Path, metavar="A", help="record to compare with")
    parser.add_argument("after", type=Path, metavar="B", help="record to judge")
    parser.add_argument(
        "--max-regression",
        metavar="PERCENT",
        help="exit with 1 if the whole interval of a row of B is slower by more, such as 5%%",
    )
    parser.add_argument(
        "--force", action="store_true", help="compare records of different models or machines"
    )
    return parser


def _share(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if match is None:
        raise InputError(f"--max-regression is {text!r}: give a percentage such as 5%")
    return float(match[1]) / 100


def _key(row: Row) -> tuple[Scope, str, int, int]:
    return row.scope, row.name, row.batch, row.expressions


def _baselines(old: Row, before: Record, new: Row, after: Record) -> tuple[Row, Row] | None:
    first, second = baseline_of(old, before.rows), baseline_of(new, after.rows)
    if first is None or second is None or old.role is Role.BASELINE:
        return None
    return first, second


def _failed(record: Record, row: Row) -> bool:
    return row.bundle is not None and record.bundles[row.bundle].parity is Parity.FAILED


def _unlike(before: Record, after: Record) -> tuple[str, ...]:
    lasting = {field.name for field in dataclasses.fields(before.machine)} - _CHANGING
    settings = (
        ("threads", before.threads or "all", after.threads or "all"),
        ("image size", _image_size(before), _image_size(after)),
    )
    return (
        *_differences(before.model, after.model),
        *_differences(before.machine, after.machine, frozenset(lasting)),
        *(f"{name} {old} and {new}" for name, old, new in settings if old != new),
    )


def _image_size(record: Record) -> str:
    return f"{record.image_width} x {record.image_height}"


def _differences(
    before: object, after: object, names: frozenset[str] | None = None
) -> tuple[str, ...]:
    """Fields of two dataclasses of one type that differ, in words; all of them or some."""
    old, new = plain(before), plain(after)
    return tuple(
        phrase
        for name in old
        if names is None or name in names
        for phrase in _phrases(name, old[name], new[name])
    )


def _phrases(name: str, old: object, new: object) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _phrases(key, old.get(key), new.get(key))
    elif old != new:
        yield f"{name} {_said(old)} and {_said(new)}"


def _said(value: object) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _section(comparison: Comparison, limit: float | None) -> Section:
    rows = []
    for change in comparison.changes:
        by = "x eager" if change.by_ratio else "ms"
        before, after = (
            f"{figure:.2f}" if change.by_ratio else f"{figure:.3f}" for figure in change.figures
        )
        percent = _percent(change)
        remarks = "; ".join(_remarks(change, limit))
        rows.append((*_named(change.before), by, before, after, percent, remarks))
    columns = ("scope", "contestant", "images", "expressions", "by", "A", "B", "slower", "remarks")
    words = frozenset({"contestant", "by", "remarks"})
    return Section("", (), columns, tuple(rows), words, tuple(_notes(comparison, limit)))


def _percent(change: Change) -> str:
    if not change.judged:
        return ""
    found = change.interval
    if found is None:
        return f"{change.slower:+.1%}"
    return f"{found.middle:+.1%} ({found.low:+.1%} to {found.high:+.1%})"


def _named(row: Row) -> tuple[str, str, str, str]:
    return TITLES[row.scope], row.name, str(row.batch), str(row.expressions)


def _remarks(change: Change, limit: float | None) -> list[str]:
    found = []
    if limit is not None and change.regressed(limit):
        found.append("TOO SLOW")
    if change.judged and change.interval is None:
        found.append(f"fewer than {LEAST_ROUNDS} rounds: not judged")
    if not change.judged:
        found.append("a difference of times: not judged")
    noisy = [name for name, row in (("A", change.before), ("B", change.after)) if row.noisy]
    if noisy:
        found.append(f"noisy in {' and '.join(noisy)}")
    if change.failed_parity:
        found.append(f"{FAILED} in B")
    return found


def _notes(comparison: Comparison, limit: float | None) -> list[str]:
    notes = [
        f"Only in {name}: {scope.lower()}, {contestant} (images {images}, expressions {words})."
        for name, rows in (("A", comparison.gone), ("B", comparison.new))
        for scope, contestant, images, words in map(_named, rows)
    ]
    if comparison.unlike:
        notes.append(f"Not like with like: {'; '.join(comparison.unlike)}.")
    if comparison.also:
        notes.append(f"Also different: {'; '.join(comparison.also)}.")
    if limit is not None:
        notes.append(
            f"{len(comparison.regressions(limit))} of {len(comparison.changes)} rows are slower by "
            f"more than {100 * limit:g}%, with 95% certainty."
        )
    return notes


if __name__ == "__main__":
    sys.exit(main())
