"""`cris-bench report RECORD...`: records as Markdown, and as plots beside it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cris_bench.record.file import read_record
from cris_bench.record.schema import Record
from cris_bench.report.summary import markdown
from cris_deploy.cli import Parser, guarded
from cris_deploy.errors import InputError
from cris_deploy.files import write_whole

_PROGRAM: Final = "cris-bench report"
FILE: Final = "report.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a report, or write it with plots. Exit 0, or 2 for unusable input."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))

    def run() -> int:
        records = _read_all(args.records)
        if args.output is None:
            print(document(records), end="")
        else:
            print(write_report(records, args.output))
        return 0

    return guarded(_PROGRAM, run)


def document(records: Mapping[str, Record], plots: Sequence[Path] = ()) -> str:
    """Markdown of records, one after the other under their names, plots first.

    Args:
        records: Name -> record.
        plots: Files that lie beside the document.
    """
    parts = ["# Benchmarks\n", *(f"![{plot.stem}]({plot.name})\n" for plot in plots)]
    parts += [markdown(record, name, level=2) for name, record in records.items()]
    return "\n".join(parts)


def write_report(records: Mapping[str, Record], folder: Path) -> Path:
    """Write `report.md` with plots as SVG and PNG into a folder, and give the file.

    Raises:
        InputError: matplotlib is not installed, or the folder cannot be written.
    """
    from cris_bench.report.plot import draw

    plots = [path.with_suffix(".svg") for path in draw(records, folder)]
    return write_whole(folder / FILE, document(records, plots).encode())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Show records of cris-bench as Markdown tables; with -o also as plots.",
        examples=(
            "cris-bench report record.json",
            "cris-bench report before.json after.json -o report",
        ),
    )
    parser.add_argument(
        "records", type=Path, nargs="+", metavar="RECORD", help="cris-bench -o FILE"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"write {FILE} and plots (SVG and PNG) there; takes the extra 'bench'",
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
