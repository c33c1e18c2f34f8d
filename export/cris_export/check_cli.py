"""`cris-export --check`: a bundle is proved again, where it will serve. Needs no PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cris_deploy.backends import AUTO, BackendName, Compute, Device

if TYPE_CHECKING:
    from cris_deploy.check import CheckReport

EXIT_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `--check`."""
    group = parser.add_argument_group("repeating the proof on the machine that will serve")
    group.add_argument(
        "--check",
        type=Path,
        metavar="BUNDLE",
        help="run the bundle's samples here and compare with FP32 PyTorch's answers, which it "
        "holds; --min-iou is its own by default",
    )
    devices = (*Device, "cuda:N for the GPU number N, from 0")
    for name, values in (("backend", BackendName), ("device", devices), ("precision", Compute)):
        group.add_argument(
            f"--{name}", metavar="NAME", help=f"{', '.join([AUTO, *values])} (default: {AUTO})"
        )
    group.add_argument("--json", action="store_true", help="print the check as JSON")


def misused(args: argparse.Namespace) -> str | None:
    """Name the first option that goes with --check and was given without it."""
    if args.check is not None:
        return None
    given = {
        f"--{name}": getattr(args, name) for name in ("backend", "device", "precision", "json")
    }
    return next((name for name, value in given.items() if value), None)


def run(args: argparse.Namespace) -> int:
    """Check and print; gives the exit code: 0, or 1 if the bundle fails here."""
    from cris_deploy.check import check
    from cris_export.tables import describe_check

    start = time.perf_counter()
    report = check(
        args.check,
        backend=args.backend or AUTO,
        device=args.device or AUTO,
        precision=args.precision or AUTO,
        min_iou=args.min_iou,
    )
    if args.json:
        print(json.dumps(to_json(report), indent=2, ensure_ascii=False))
    else:
        print(describe_check(report, time.perf_counter() - start))
    if report.problem is not None:
        print(f"cris-export: {args.check}: {report.problem}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def to_json(report: CheckReport) -> dict[str, Any]:
    """Give a report as plain data; an error is null where NaN or infinity came out."""
    return {"passed": report.passed, **dataclasses.asdict(report), "bundle": str(report.bundle)}
