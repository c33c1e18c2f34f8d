"""`cris-export --check`: a bundle is proved again, where it will serve. Needs no PyTorch.

What proves it is chosen by the same options as at export.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cris_deploy.execution.backends import AUTO, BackendName, Compute, Device

if TYPE_CHECKING:
    from cris_deploy.proof.check import CheckReport

EXIT_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `--check`, and those that choose what proves a bundle."""
    group = parser.add_argument_group("the proof, at export or on the machine that will serve")
    group.add_argument(
        "--check",
        type=Path,
        metavar="BUNDLE",
        help="run the bundle's samples here and compare with FP32 PyTorch's answers, which it "
        "holds; --min-iou and --max-logit-error are its own by default",
    )
    devices = (*Device, "cuda:N for the GPU number N, from 0")
    for name, values in (("backend", BackendName), ("device", devices), ("precision", Compute)):
        group.add_argument(
            f"--{name}",
            metavar="NAME",
            default=AUTO,
            help=f"of what proves it: {', '.join([AUTO, *values])} (default: {AUTO})",
        )
    group.add_argument("--json", action="store_true", help="print the check as JSON (--check)")


def misused(args: argparse.Namespace) -> str | None:
    """Say which option was given that the mode does not have."""
    if args.json and args.check is None:
        return "--json goes with --check"
    given = [name for name in ("backend", "device", "precision") if getattr(args, name) != AUTO]
    if args.bundle is not None and given:
        return f"--{given[0]} goes with --ckpt and --check"
    return None


def run(args: argparse.Namespace) -> int:
    """Check and print; gives the exit code: 0, or 1 if the bundle fails here."""
    from cris_deploy.proof.check import check
    from cris_export.tables import describe_check

    start = time.perf_counter()
    report = check(
        args.check,
        backend=args.backend,
        device=args.device,
        precision=args.precision,
        min_iou=args.min_iou,
        max_logit_error=args.max_logit_error,
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
