"""`cris-export check`: a bundle is proved again, where it will serve. Needs no PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from cris_deploy.cli import Parser, add_trust, guarded, open_bundle
from cris_deploy.documents import to_json
from cris_deploy.execution.backends import AUTO, BackendName, Compute, Device
from cris_export.cli import Steps

EXIT_FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Check and print; exit 0, 1 if the bundle fails here, 2 for unusable input."""
    args = _parser().parse_args(argv)
    return guarded("cris-export", lambda: _run(args))


def add_prover(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose what proves a bundle, at export or afterwards."""
    group = parser.add_argument_group("what proves the bundle")
    devices = (*Device, "cuda:N for the GPU number N, from 0")
    for name, values in (("backend", BackendName), ("device", devices), ("precision", Compute)):
        group.add_argument(
            f"--{name}",
            metavar="NAME",
            default=AUTO,
            help=f"{', '.join([AUTO, *values])} (default: {AUTO})",
        )


def _run(args: argparse.Namespace) -> int:
    from cris_deploy.proof.check import check
    from cris_export.tables import describe_check

    steps = Steps()
    report = check(
        open_bundle(args),
        backend=args.backend,
        device=args.device,
        precision=args.precision,
        min_iou=args.min_iou,
        max_logit_error=args.max_logit_error,
        trust_plans=args.trust_plans,
        allow_plan_code=args.allow_plan_code,
    )
    if args.json:
        document = dataclasses.asdict(report) | {"bundle": str(report.bundle)}
        print(to_json({"passed": report.passed, **document}), end="")
    else:
        print(describe_check(report, steps.seconds))
    if report.problem is not None:
        print(f"cris-export: {args.bundle}: {report.problem}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-export check",
        description="Prove a bundle again, on the machine that will serve: its samples run here,\n"
        "against the answers of FP32 PyTorch that it holds. Needs no PyTorch.",
        examples=(
            "cris-export check x.bundle",
            "cris-export check x.bundle --backend tensorrt --device cuda:1 --json",
        ),
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="what cris-export wrote")
    add("--min-iou", type=float, metavar="X", help="least mean mask IoU (default: the bundle's)")
    add(
        "--max-logit-error",
        type=float,
        metavar="X",
        help="largest error of a sample's logits, root mean square over their deviation in FP32 "
        "PyTorch; in fp32 also of each stage's outputs (default: the bundle's)",
    )
    add_prover(parser)
    add_trust(parser)
    add(
        "--trust-plans",
        action="store_true",
        help="take TensorRT plans that the bundle does not list; a plan is code",
    )
    add(
        "--allow-plan-code",
        action="store_true",
        help="run the machine code that version-compatible TensorRT plans bring",
    )
    add("--json", action="store_true", help="print the report as JSON")
    return parser
