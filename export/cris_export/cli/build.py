"""`cris-export build`: TensorRT plans for a bundle there is. Needs no checkpoint and no PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cris_deploy.cli import Parser, guarded
from cris_export.cli import Steps, sign
from cris_export.plans.options import PlanKind, PlanOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Build, and print a table of the plans; exit 0, or 2 for unusable input."""
    args = _parser().parse_args(argv)
    return guarded("cris-export", lambda: _run(args))


def _parser() -> Parser:
    parser = Parser(
        prog="cris-export build",
        description="Build TensorRT plans for a bundle there is, and list them in its manifest.\n"
        "Needs no checkpoint and no PyTorch.",
        examples=(
            "cris-export build x.bundle --engine tensorrt",
            "cris-export build x.bundle --engine tensorrt-rtx --target sm86,sm120",
        ),
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what cris-export wrote")
    sign.add_sign(parser)
    add_plans(parser)
    return parser


def add_plans(parser: argparse.ArgumentParser) -> None:
    """Add the options of plans, with a checkpoint or for a bundle there is."""
    add = parser.add_argument_group("TensorRT plans, beside the ONNX graphs").add_argument
    add(
        "--engine",
        choices=[*PlanKind],
        default=PlanKind.AUTO,
        help="what builds them; auto: for the GPU that is present, with none TensorRT-RTX if "
        "targets are named (default: auto)",
    )
    add(
        "--target",
        metavar="LIST",
        default="",
        help="compute capabilities for TensorRT-RTX, such as sm86,sm89,sm120; needs no GPU",
    )
    add("--max-batch", type=int, default=8, metavar="N", help="images in one run (default: 8)")
    add("--max-expressions", type=int, default=32, metavar="N", help="of one image (default: 32)")
    add("--version-compatible", action="store_true", help="TensorRT: for later versions, too")
    add("--hardware-compatible", action="store_true", help="TensorRT: for all GPUs from Ampere on")
    add("--timing-cache", type=Path, metavar="FILE", help="TensorRT: kernel timings")
    add("--workspace", type=int, metavar="MIB", help="scratch memory of the builder")


def plan_options(args: argparse.Namespace) -> PlanOptions:
    """Read the options of plans; InputError names the flag that is unusable."""
    return PlanOptions(
        kind=PlanKind(args.engine),
        targets=tuple(args.target.split(",")) if args.target else (),
        max_batch=args.max_batch,
        max_expressions=args.max_expressions,
        version_compatible=args.version_compatible,
        hardware_compatible=args.hardware_compatible,
        timing_cache=args.timing_cache,
        workspace_mib=args.workspace,
    )


def _run(args: argparse.Namespace) -> int:
    from cris_export.plans.build import build_plans
    from cris_export.tables import describe_plans

    steps = Steps()
    signer = sign.signer(args.sign)
    if records := build_plans(args.bundle, plan_options(args), steps, signer):
        print(f"{describe_plans(records)}\nbuilt in {steps.seconds:.1f} s")
    return 0
