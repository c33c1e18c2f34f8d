"""The options of `cris-export` that build engines, with a checkpoint or for a bundle there is."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cris_deploy.bundle.plans import PlanRecord
    from cris_export.plans.build import EngineOptions

_KINDS = ("auto", "none", "tensorrt", "tensorrt-rtx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of engines."""
    group = parser.add_argument_group("engines (plans) for NVIDIA GPUs, beside the ONNX graphs")
    group.add_argument(
        "--bundle",
        type=Path,
        metavar="BUNDLE",
        help="build plans for this bundle; no checkpoint and no PyTorch needed",
    )
    group.add_argument(
        "--engine",
        choices=_KINDS,
        default="auto",
        help="auto: for the GPU that is present; with none, TensorRT-RTX plans if targets are "
        "named (default: auto)",
    )
    group.add_argument(
        "--target",
        metavar="LIST",
        default="",
        help="compute capabilities for TensorRT-RTX, such as sm86,sm89,sm120; needs no GPU",
    )
    group.add_argument("--max-batch", type=int, default=8, metavar="N", help="(default: 8)")
    group.add_argument(
        "--max-expressions", type=int, default=32, metavar="N", help="on one image (default: 32)"
    )
    group.add_argument(
        "--version-compatible", action="store_true", help="TensorRT: plans for later versions, too"
    )
    group.add_argument(
        "--hardware-compatible", action="store_true", help="TensorRT: for all GPUs from Ampere on"
    )
    group.add_argument("--timing-cache", type=Path, metavar="FILE", help="TensorRT: kernel timings")
    group.add_argument("--workspace", type=int, metavar="MIB", help="scratch memory of the builder")


def options(args: argparse.Namespace) -> EngineOptions:
    """Read the options; InputError names the flag that is unusable."""
    from cris_export.plans.build import EngineKind, EngineOptions

    return EngineOptions(
        engine=EngineKind(args.engine),
        targets=tuple(args.target.split(",")) if args.target else (),
        max_batch=args.max_batch,
        max_expressions=args.max_expressions,
        version_compatible=args.version_compatible,
        hardware_compatible=args.hardware_compatible,
        timing_cache=args.timing_cache,
        workspace_mib=args.workspace,
    )


def run(args: argparse.Namespace, step: Callable[[str], None]) -> int:
    """Build plans for a bundle there is; gives the exit code."""
    from cris_export.plans.build import build_engines

    start = time.perf_counter()
    records = build_engines(args.bundle, options(args), step)
    if records:
        print(f"{describe(records)}\nbuilt in {time.perf_counter() - start:.1f} s")
    return 0


def describe(records: Sequence[PlanRecord]) -> str:
    """A table of plans: which graph, for whom, how large, in which types it multiplies."""
    lines = [f"{'plan':<52}{'size':>10}{'built in':>10}  products"]
    for record in records:
        products = ", ".join(f"{count} {kind}" for kind, count in record.products.items())
        lines.append(
            f"{record.file:<52}{record.plan_bytes / 1e6:>7.1f} MB{record.build_seconds:>8.1f} s"
            f"  {products}"
        )
    return "\n".join(lines)
