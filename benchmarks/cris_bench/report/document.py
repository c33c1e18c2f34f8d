"""`cris-bench report RECORD...`: records as Markdown, and as plots."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cris_bench.record.file import read_record
from cris_bench.record.schema import Record
from cris_bench.report.summary import markdown
from cris_deploy.cli import Parser, guarded
from cris_deploy.errors import InputError

_PROGRAM: Final = "cris-bench report"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a report, and draw plots. Exit 0, or 2 for unusable input."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))

    def run() -> int:
        records = _read_all(args.records)
        if args.price is not None and not 0 < args.price < math.inf:
            raise InputError(f"--price is {args.price}: give dollars above 0")
        if args.plots is not None:
            from cris_bench.report.plot import draw

            for path in draw(records, args.plots):
                print(path, file=sys.stderr)
        print(document(records, args.price), end="")
        return 0

    return guarded(_PROGRAM, run)


def document(records: Mapping[str, Record], price: float | None = None) -> str:
    """Markdown of records, one after the other under their names.

    Args:
        records: Name -> record.
        price: Dollars of the machine for an hour; None to leave costs out.
    """
    parts = [markdown(record, name, level=2, price=price) for name, record in records.items()]
    return "\n".join(["# Benchmarks\n", *parts])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Show records of cris-bench as Markdown tables, and as plots.",
        examples=(
            "cris-bench report record.json --price 0.34",
            "cris-bench report before.json after.json --plots pictures",
        ),
    )
    add = parser.add_argument
    add("records", type=Path, nargs="+", metavar="RECORD", help="cris-bench -o FILE")
    add("--price", type=float, metavar="DOLLARS", help="of the machine for an hour: adds costs")
    add(
        "--plots",
        type=Path,
        metavar="FOLDER",
        help="write SVG files NAME-network, -calls, -throughput there; takes the extra 'bench'",
    )
    return parser


def _read_all(paths: Sequence[Path]) -> dict[str, Record]:
    """Records by the names of their files."""
    records: dict[str, Record] = {}
    for path in paths:
        if path.stem in records:
            raise InputError(f"{path}: two records are called {path.stem!r}; rename one")
        records[path.stem] = read_record(path)
    return records


if __name__ == "__main__":
    sys.exit(main())
