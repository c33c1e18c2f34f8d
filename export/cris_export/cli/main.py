"""`cris-export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cris_deploy.bundle.manifest import DEFAULT_MIN_IOU
from cris_deploy.cli import Parser, guarded
from cris_deploy.errors import InputError
from cris_export.cli import Steps, build, check, key, sign, triton, web
from cris_export.errors import ParityError

if TYPE_CHECKING:
    from cris_export.export import ExportReport

EXIT_PARITY = 1

_COMMANDS = {
    "check": check.main,
    "build": build.main,
    "sign": sign.main,
    "key": key.main,
    "triton": triton.main,
    "web": web.main,
}
_MOVED = {"--check": "check", "--bundle": "build"}
_EPILOG = """\
commands, each with a --help of its own:
  cris-export check BUNDLE   prove a bundle again, on the machine that will serve
  cris-export build BUNDLE   build TensorRT plans for a bundle there is
  cris-export sign BUNDLE --key KEY   sign a bundle there is
  cris-export key KEY   make a pair of keys to sign with
  cris-export triton BUNDLE REPO   write a model repository for Triton Inference Server
  cris-export web BUNDLE DIR   write a page that finds masks in the browser
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a subcommand, or export and print tables.

    Exit 0, 1 if a bound of the parity gate is missed, 2 for unusable input.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    signal.signal(signal.SIGTERM, _terminate)
    if given and given[0] in _COMMANDS:
        return _COMMANDS[given[0]](given[1:])
    return guarded("cris-export", lambda: _export(given))


def _export(given: Sequence[str]) -> int:
    for word in given:
        if (flag := word.partition("=")[0]) in _MOVED:
            raise InputError(f"{flag} BUNDLE is now written cris-export {_MOVED[flag]} BUNDLE")
    args = _parser().parse_args(given)
    # torch takes seconds to import: not for --help or a mistyped flag
    from cris_deploy.bundle.reading import Precision
    from cris_export.export import export
    from cris_export.options import ExportOptions
    from cris_export.proof.verify import Asked

    stored = Precision.FP16 if args.fp16 else Precision.FP32
    options = ExportOptions(
        checkpoint=args.ckpt,
        output=args.output,
        word_len=args.word_len,
        precision=Precision.INT8 if args.int8 else stored,
        half=args.int8 and args.fp16,
        samples=args.samples,
        calibration=args.calibration,
        plans=build.plan_options(args),
        min_iou=args.min_iou,
        min_correlation=args.min_correlation,
        max_logit_error=args.max_logit_error,
        opset=args.opset,
        asked=Asked(args.backend, args.device, args.precision),
        signer=sign.signer(args.sign),
    )
    try:
        report = export(options, Steps())
    except ParityError as error:
        print(f"cris-export: {error}", file=sys.stderr)
        return EXIT_PARITY
    name = "+".join(name for name in ("int8", "fp16") if getattr(args, name)) or "fp32"
    _print_report(report, name, word_len_given=args.word_len is not None)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-export",
        description="Export a CRIS checkpoint to a bundle: ONNX graphs, weights, tokenizer and "
        "samples,\nproved against FP32 PyTorch.",
        epilog=_EPILOG,
        examples=(
            "cris-export --ckpt x.pth --fp16",
            "cris-export --ckpt x.pth --int8 --calibration pairs.jsonl -o int8.bundle",
        ),
    )
    add = parser.add_argument
    add(
        "--ckpt",
        type=Path,
        required=True,
        metavar="FILE",
        help="checkpoint of the reference implementation or of cris-train",
    )
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="the bundle (default: x.bundle beside x.pth)",
    )
    add(
        "--word-len",
        type=int,
        metavar="N",
        help="tokens per expression: 17 for RefCOCO and RefCOCO+, 22 for G-Ref "
        "(default: the checkpoint's own, or 17)",
    )
    add(
        "--fp16",
        action="store_true",
        help="store float16 weights and typed float16 graphs; with --int8 what lies between int8 "
        "layers, which is for GPUs",
    )
    add(
        "--int8",
        action="store_true",
        help="store int8 weights and quantised graphs; needs --calibration",
    )
    add(
        "--calibration",
        type=Path,
        metavar="JSONL",
        help="pairs to calibrate --int8 on, as in --samples: a hundred like those to come",
    )
    add(
        "--samples",
        type=Path,
        metavar="JSONL",
        help='pairs to prove the export on, a line each: {"image": ..., "expression": ...}; like '
        "the model's own, since masks that are all empty or full prove nothing "
        "(default: two packaged photographs)",
    )
    add(
        "--min-iou",
        type=float,
        metavar="X",
        help=f"least mean mask IoU against FP32 PyTorch (default: {DEFAULT_MIN_IOU}, with --int8 "
        "0.95)",
    )
    add(
        "--min-correlation",
        type=float,
        metavar="X",
        help="least correlation of --int8 logits with float32 on calibration pairs (default: 0.99)",
    )
    add(
        "--max-logit-error",
        type=float,
        metavar="X",
        help="largest error of a sample's logits, root mean square over their deviation in FP32 "
        "PyTorch; in fp32 also of each stage's outputs "
        "(default: by precision and arithmetic, docs/decisions/0004)",
    )
    add("--opset", type=int, default=20, metavar="N", help="ONNX operator set (default: 20)")
    sign.add_sign(parser)
    build.add_plans(parser)
    check.add_prover(parser)
    return parser


def _print_report(report: ExportReport, stored: str, *, word_len_given: bool) -> None:
    from cris_export.tables import describe_parity, describe_plans, describe_types

    config = report.checkpoint.config
    if not report.checkpoint.has_config and not word_len_given:
        print(
            f"note: the checkpoint does not say its word length; took {config.word_len} (RefCOCO, "
            f"RefCOCO+). For G-Ref export again with --word-len 22"
        )
    print(f"\n{describe_types(report.types)}")
    print(f"\n{describe_parity(report.parity)}")
    total = sum(report.sizes.values()) / 1e6
    if report.plans:
        print(f"\n{describe_plans(report.plans)}")
    for warning in report.warnings:
        print(f"warning: {warning}")
    print(f"\n{report.bundle}  ({total:.1f} MB, {stored}, parity proved)")


def _terminate(number: int, frame: FrameType | None) -> None:
    # An exception unwinds through the writer, which removes what was half-written.
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
