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

from cris_deploy.cli import guarded

if TYPE_CHECKING:
    from cris_train.data.check import Counts, Report
    from cris_train.data.speed import Speed

GENERATED = 300  # pictures for `speed` without a data set


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and look. Exit 0, 1 for a data set with faults, 2 for unusable input."""
    parser = argparse.ArgumentParser(prog="cris-data", description="Look a data set over.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="count, compare with the published figures, say what is missing",
        description="Counts images, objects and expressions, compare with the published figures, "
        "and say what is missing. Exit 0: whole; 1: faults; 2: no data set.",
    )
    check.add_argument("data", type=Path, metavar="DIR", help="folder of the data set")
    check.add_argument("--name", metavar="NAME", help="refcoco, refcoco+ or refcocog (DIR's name)")
    check.add_argument("--pictures", action="store_true", help="open every picture and mask, too")
    speed = commands.add_parser(
        "speed",
        help="samples per second from files, and where the time goes",
        description="Measure the loader: pictures with one expression each, from files to batches. "
        "Without DIR on generated pictures of COCO's size (640x480 JPEGs).",
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
    args = parser.parse_args(argv)
    action = _check if args.command == "check" else _speed
    return guarded("cris-data", lambda: action(args))


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
    print(json.dumps(_as_json(report), indent=2) if args.json else _table(report))
    return 0 if report.whole else 1


def _as_json(report: Report) -> dict[str, object]:
    values = dataclasses.asdict(report)
    values["root"] = str(report.root)
    values["missing"] = [str(path) for path in report.missing]
    values["whole"] = report.whole
    return values


def _table(report: Report) -> str:
    compared = bool(report.published)
    head = f"{'split':<8}{'images':>10}{'objects':>10}{'expressions':>13}"
    lines = [head + (f"   published ({report.name})" if compared else "")]
    for split, count in report.counts.items():
        lines.append(f"{split:<8}{_row(count)}")
        if split in report.published:
            lines[-1] += f"  {_row(report.published[split])}"
    lines += [f"fault: {fault}" for fault in report.faults]
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join([*lines, "whole" if report.whole else "not whole"])


def _row(count: Counts) -> str:
    cells = (
        (count.images, 10),
        (count.objects, 10),
        (count.expressions, 13),
    )
    return "".join(f"{'-' if n is None else format(n, ','):>{width}}" for n, width in cells)


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
    lines += [
        f"  {step:<17}{spent:7.3f}  {spent / total:6.1%}" for step, spent in speed.steps.items()
    ]
    return "\n".join([*lines, f"  {'sum':<17}{total:7.3f}"])


if __name__ == "__main__":
    sys.exit(main())
