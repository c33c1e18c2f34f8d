"""`cris-bench cost RECORD`: what a record's times mean in machines and money."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cris_bench.record.file import read_record
from cris_bench.record.rows import Role, Row, Scope
from cris_bench.record.schema import Record
from cris_deploy.cli import Parser, guarded, tables
from cris_deploy.errors import InputError

_PROGRAM: Final = "cris-bench cost"
_SCOPES: Final = (Scope.FROM_BYTES, Scope.END_TO_END)
"""Whole calls, with the picture's decoding where that was timed."""
_SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "day": 86400}
_RATE: Final = re.compile(r"([0-9.eE+]+)/(s|min|h|day)")
_DRAWS: Final = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95% interval, from the record's raw times."""

    middle: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What one contestant needs.

    Attributes:
        name: Contestant.
        scope: Which whole calls its times are of.
        batch: Images of a call, the cheapest that the record has.
        images_per_second: Of one machine.
        machines: For the asked images.
        dollars_per_million: For a million masks.
    """

    name: str
    scope: Scope
    batch: int
    images_per_second: Interval
    machines: Interval
    dollars_per_million: Interval


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table. Exit 0, or 2 for unusable input."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))

    def run() -> int:
        record = read_record(args.record)
        costs = find_costs(
            record, args.price, images_per_second(args.images), args.expressions, args.load
        )
        print(_text(record, costs, args))
        return 0

    return guarded(_PROGRAM, run)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Turn a record's whole calls into machines and money. A machine here is the "
        "one that the record was taken on, asked by one caller after the other.",
        examples=(
            "cris-bench cost results.json --price 2.50 --images 1e6/h --expressions 3",
            "cris-bench cost results.json --price 0.10 --images 20/s --load 0.6",
        ),
    )
    add = parser.add_argument
    add("record", type=Path, metavar="RECORD", help="cris-bench --scopes all -o FILE")
    add("--price", type=float, required=True, metavar="DOLLARS", help="of a machine for an hour")
    add("--images", default="1e6/h", metavar="N/UNIT", help="asked: per s, min, h, day (1e6/h)")
    add("--expressions", type=int, default=1, metavar="N", help="for each image (1)")
    add("--load", type=float, default=1.0, metavar="SHARE", help="of a machine that is planned (1)")
    return parser


def images_per_second(text: str) -> float:
    """Read a rate such as 1e6/h. Raises InputError."""
    found = _RATE.fullmatch(text.strip())
    try:
        number = float(found[1]) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not 0 < number < math.inf:
        units = ", ".join(_SECONDS)
        raise InputError(f"--images {text}: give a number and one of {units}, such as 1e6/h")
    return number / _SECONDS[found[2]]


def find_costs(
    record: Record, price: float, images: float, expressions: int, load: float = 1.0
) -> list[Cost]:
    """Give every contestant's cost, the cheapest first.

    Args:
        record: With whole calls of one expression, and of several if several are asked for.
        price: Dollars of a machine for an hour.
        images: Per second.
        expressions: For each image.
        load: Share of a machine's time that is planned for.

    Raises:
        InputError: a number out of range, or a record without whole calls.
    """
    for name, value, most in (("price", price, math.inf), ("load", load, 1.0)):
        if not 0 < value <= most or math.isinf(value):
            raise InputError(f"--{name} is {value}: give a number above 0, at most {most:g}")
    if expressions < 1:
        raise InputError(f"--expressions is {expressions}: give 1 or more")
    costs = []
    for name in dict.fromkeys(row.name for row in record.rows):
        rows = [row for row in record.rows if row.name == name]
        candidates = [
            (seconds, scope, batch)
            for scope in _SCOPES
            for batch in sorted({row.batch for row in rows})
            if (seconds := _image_seconds(rows, scope, batch, expressions)) is not None
        ]
        if candidates:
            # The first scope that the contestant has, at its cheapest batch.
            best = min(candidates, key=lambda each: (_SCOPES.index(each[1]), np.median(each[0])))
            costs.append(_cost(name, *best, price, images, expressions, load))
    if not costs:
        raise InputError(
            "the record has no whole calls for that many expressions: take one with cris-bench "
            f"--scopes all --expressions 1,{max(2, expressions)}"
        )
    return sorted(costs, key=lambda cost: cost.dollars_per_million.middle)


def _image_seconds(
    rows: Sequence[Row], scope: Scope, batch: int, expressions: int
) -> NDArray[np.float64] | None:
    """Draws of the median seconds of an image with so many expressions; None if not measured.

    Between two measured numbers of expressions, and beyond the last, time grows by the same for
    each: the image encoder's share is paid once.
    """
    rng = np.random.default_rng(0)
    known: dict[int, NDArray[np.float64]] = {}
    for row in rows:
        if row.scope is scope and row.batch == batch:
            draws = rng.choice(row.seconds, (_DRAWS, len(row.seconds)))
            # PyTorch eager takes the expressions one by one: its passes make one mask.
            times = row.expressions * batch / row.masks
            known[row.expressions] = np.median(draws, axis=1) * times / batch
    if expressions in known:
        return known[expressions]
    if len(known) < 2:
        return None
    counts = sorted(known)
    after = next((n for n in counts if n > expressions), counts[-1])
    before = max((n for n in counts if n < after and n < expressions), default=counts[0])
    if before == after:
        before = counts[counts.index(after) - 1]
    slope = (known[after] - known[before]) / (after - before)
    found: NDArray[np.float64] = known[before] + slope * (expressions - before)
    return found


def _cost(
    name: str,
    seconds: NDArray[np.float64],
    scope: Scope,
    batch: int,
    price: float,
    images: float,
    expressions: int,
    load: float,
) -> Cost:
    def interval(values: NDArray[np.float64]) -> Interval:
        low, middle, high = np.percentile(values, [2.5, 50, 97.5])
        return Interval(float(middle), float(low), float(high))

    capacity = load / seconds  # images a second of a machine
    masks_per_hour = capacity * expressions * 3600
    return Cost(
        name,
        scope,
        batch,
        interval(capacity),
        interval(images / capacity),
        interval(price / masks_per_hour * 1e6),
    )


def _text(record: Record, costs: Sequence[Cost], args: argparse.Namespace) -> str:
    roles = {row.name: row.role for row in record.rows}
    rows = [
        (
            cost.name + ("" if roles[cost.name] is Role.ENGINE else " (not this engine)"),
            f"{cost.images_per_second.middle:.3g}",
            _whole(cost.machines),
            f"{cost.dollars_per_million.middle:,.2f} "
            f"({cost.dollars_per_million.low:,.2f} to {cost.dollars_per_million.high:,.2f})",
            cost.scope.value,
            str(cost.batch),
        )
        for cost in costs
    ]
    columns = ("", "images/s", "machines", "$ per million masks", "times of", "batch")
    return "\n".join(
        (
            f"{args.images} images with {args.expressions} expression(s) each, machines at "
            f"${args.price:g} an hour, {args.load:.0%} of their time",
            f"a machine: {record.machine.gpu or record.machine.cpu}, {record.machine.cores} cores",
            "",
            tables.to_text(columns, rows, words={"times of"}),
        )
    )


def _whole(machines: Interval) -> str:
    low, middle, high = (
        math.ceil(number - 1e-9) for number in (machines.low, machines.middle, machines.high)
    )
    return f"{middle:,} ({low:,} to {high:,})"


if __name__ == "__main__":
    sys.exit(main())
