"""What the commands that measure have in common: a bundle, and a record to print or to write."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from cris_deploy.cli import guarded
from cris_deploy.documents import to_json
from cris_deploy.files import write_whole

_R = TypeVar("_R")


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the bundle, `--output` and `--json`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what cris-export wrote")
    add_output(parser)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add `--output` and `--json`."""
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="FILE", help="write the record as JSON")
    add("--json", action="store_true", help="print the record")


def run_command(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    measure: Callable[[argparse.Namespace, tuple[str, ...]], _R],
    describe: Callable[[_R], str],
    failed: Callable[[_R], bool] = lambda _: False,
) -> int:
    """Measure, write and print. Exit 0, 1 if the record says `failed`, 2 for unusable input."""
    given = sys.argv[1:] if argv is None else list(argv)
    args = parser.parse_args(given)

    def run() -> int:
        record = measure(args, tuple(given))
        if args.output is not None:
            write_whole(args.output, to_json(record).encode())
        print(to_json(record) if args.json else describe(record))
        return int(failed(record))

    return guarded(parser.prog, run)
