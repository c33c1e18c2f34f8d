"""`cris-data`: is a data set whole, and how fast can it be read?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cris_deploy.cli import Parser, guarded
from cris_deploy.cli.tables import to_text

if TYPE_CHECKING:
    from cris_train.data.check import Counts, Report
    from cris_train.data.speed import Speed

GENERATED = 300  # pictures for `speed` without a data set
_COUNTED = ("images", "objects", "expressions")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and look. Exit 0, 1 for a data set with faults, 2 for unusable input."""
    args = _parser().parse_args(argv)
    action = _check if args.command == "check" else _speed
    return guarded("cris-data", lambda: action(args))


def _parser() -> Parser:
    parser = Parser(
        prog="cris-data",
        description="Look a data set over.",
        examples=("cris-data check data/refcoco", "cris-data speed data/refcoco --workers 2"),
    )
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="count, compare with the published figures, say what is missing",
        description="Counts images, objects and expressions, compare with the published figures, "
        "and say what is missing. Exit 0: whole; 1: faults; 2: no data set.",
        examples=(
            "cris-data check data/refcoco --images coco/train2014",
            "cris-data check data/scenes --pictures --json",
        ),
    )
    check.add_argument("data", type=Path, metavar="DIR", help="folder of the data set")
    check.add_argument("--name", metavar="NAME", help="refcoco, refcoco+ or refcocog (DIR's name)")
    check.add_argument("--pictures", action="store_true", help="open every picture and mask, too")
    speed = commands.add_parser(
        "speed",
        help="samples per second from files, and where the time goes",
        description="Measure the loader: pictures with one expression each, from files to batches. "
        "Without DIR on generated pictures of COCO's size (640x480 JPEGs).",
        examples=(
            "cris-data speed --workers 2 --seconds 20",
            "cris-data speed data/refcoco --images coco/train2014 --size 416 --batch 64",
        ),
    )
    speed.add_argument("data", type=Path, nargs="?", metavar="DIR", help="folder of the data set")
    speed.add_argument("--split", default="train", help="name of the split (train)")
    speed.add_argument("--size", type=int, default=416, metavar="S", help="input size (416)")
    speed.add_argument("--workers", type=int, default=2, metavar="N", help="processes (2)")
    speed.add_argument("--batch", type=int, default=64, metavar="B", help="pictures (64)")
    speed.add_argument("--seconds", type=float, default=10.0, metavar="T", help="to measure (10)")
    for command in (check, speed):
        command.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures")
        command.add_argument("--split-by", default="unc", help="unc, umd or google (unc)")
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _check(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from cris_train.data.check import check

    with tqdm(unit="picture", disable=None if args.pictures else True) as bar:

        def tick(done: int, count: int) -> None:
            bar.total = count
            bar.update(done - bar.n)

        report = check(
            args.data,
            name=args.name,
            split_by=args.split_by,
            images=args.images,
            open_pictures=args.pictures,
            tick=tick,
        )
    values = {**dataclasses.asdict(report), "whole": report.whole}
    print(json.dumps(values, indent=2, default=str) if args.json else _table(report))
    return 0 if report.whole else 1


def _table(report: Report) -> str:
    columns, rows = ["split", *_COUNTED], []
    if report.published:
        columns += [f"published ({report.name}): {_COUNTED[0]}", *_COUNTED[1:]]
    for split, counts in report.counts.items():
        beside = [report.published.get(split)] if report.published else []
        rows.append([split, *_cells(counts), *(cell for c in beside for cell in _cells(c))])
    lines = [to_text(columns, rows)]
    lines += [f"fault: {fault}" for fault in report.faults]
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join([*lines, "whole" if report.whole else "not whole"])


def _cells(counts: Counts | None) -> list[str]:
    if counts is None:
        return [""] * len(_COUNTED)
    numbers = (getattr(counts, name) for name in _COUNTED)
    return ["-" if number is None else f"{number:,}" for number in numbers]


def _speed(args: argparse.Namespace) -> int:
    from cris_train.data.dataset import ReferData
    from cris_train.data.speed import measure
    from cris_train.data.splits import open_split
    from cris_train.data.target import TargetSampling
    from cris_train.model import CrisConfig
    from cris_train.synthetic.photographs import write_photographs

    with tempfile.TemporaryDirectory() as folder:
        root, images, split, split_by = args.data, args.images, args.split, args.split_by
        if root is None:
            root, images, split, split_by = Path(folder), None, "train", "unc"
            write_photographs(root, max(GENERATED, args.batch))
        data = ReferData(
            open_split(root, split, split_by=split_by, images=images),
            CrisConfig(input_size=args.size),
            sampling=TargetSampling.NEAREST,
            cache=False,
        )
        speed = measure(
            data, workers=args.workers, images_per_batch=args.batch, seconds=args.seconds
        )
    print(json.dumps(dataclasses.asdict(speed), indent=2) if args.json else _profile(speed))
    return 0


def _profile(speed: Speed) -> str:
    total = sum(speed.steps.values())
    lines = [
        f"{speed.per_second:,.0f} samples/s as bytes for a device, {speed.floats_per_second:,.0f} "
        f"as float32 on the CPU ({speed.workers} workers, {speed.input_size} pixels, batches of "
        f"{speed.images_per_batch}, files of {speed.mean_bytes / 1e3:,.0f} kB)",
        "milliseconds of one core for a sample:",
    ]
    rows = [(step, f"{spent:.3f}", f"{spent / total:.1%}") for step, spent in speed.steps.items()]
    table = to_text(("step", "ms", "share"), [*rows, ("sum", f"{total:.3f}", "")])
    return "\n".join([*lines, table])


if __name__ == "__main__":
    sys.exit(main())
