"""`cris-export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cris_deploy.cli import guarded
from cris_deploy.errors import ParityError

if TYPE_CHECKING:
    from cris_export.export import ExportReport

EXIT_PARITY = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, export, print a table. Exit 0, 1 below the parity budget, 2 for unusable input."""
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)

    def run() -> int:
        # torch takes seconds to import: not for --help or a mistyped flag
        from cris_deploy.bundle import Precision
        from cris_export.export import ExportOptions, export

        options = ExportOptions(
            checkpoint=args.ckpt,
            output=args.output,
            word_len=args.word_len,
            precision=Precision.FP16 if args.fp16 else Precision.FP32,
            samples=args.samples,
            min_iou=args.min_iou,
            opset=args.opset,
        )
        try:
            report = export(options, _Steps())
        except ParityError as error:
            print(f"cris-export: {error}", file=sys.stderr)
            return EXIT_PARITY
        _print_report(report, fp16=args.fp16, word_len_given=args.word_len is not None)
        return 0

    return guarded("cris-export", run)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cris-export",
        description="Export a CRIS checkpoint to a bundle: ONNX graphs, weights, tokenizer and "
        "samples, proved against FP32 PyTorch.",
    )
    parser.add_argument(
        "--ckpt",
        type=Path,
        required=True,
        metavar="FILE",
        help="checkpoint of the reference implementation or of cris-train",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="the bundle (default: x.bundle beside x.pth)",
    )
    parser.add_argument(
        "--word-len",
        type=int,
        metavar="N",
        help="tokens per expression: 17 for RefCOCO and RefCOCO+, 22 for G-Ref "
        "(default: the checkpoint's own, or 17)",
    )
    parser.add_argument(
        "--fp16", action="store_true", help="store float16 weights and typed float16 graphs"
    )
    parser.add_argument(
        "--samples",
        type=Path,
        metavar="JSONL",
        help='pairs to prove the export on, a line each: {"image": ..., "expression": ...} '
        "(default: two packaged photographs)",
    )
    parser.add_argument(
        "--min-iou",
        type=float,
        default=0.99,
        metavar="X",
        help="least mean mask IoU against FP32 PyTorch (default: %(default)s)",
    )
    parser.add_argument(
        "--opset", type=int, default=20, metavar="N", help="ONNX operator set (default: 20)"
    )
    return parser


class _Steps:
    """Progress on stderr: each step, and how long the one before it took."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self, line: str) -> None:
        print(f"[{time.perf_counter() - self._start:5.1f} s] {line}", file=sys.stderr, flush=True)


def _print_report(report: ExportReport, *, fp16: bool, word_len_given: bool) -> None:
    config = report.checkpoint.config
    if not report.checkpoint.has_config and not word_len_given:
        print(
            f"note: the checkpoint does not say its word length; took {config.word_len} (RefCOCO, "
            f"RefCOCO+). For G-Ref export again with --word-len 22"
        )
    print(f"\n{'graph':<15}{'nodes':>7}{'fp16':>7}{'fp32':>7}{'weights':>12}")
    for name, share in report.types.items():
        half, single = share.nodes.get("float16", 0), share.nodes.get("float", 0)
        weights = sum(share.weight_bytes.values()) / 1e6
        print(f"{name:<15}{half + single:>7}{half:>7}{single:>7}{weights:>9.1f} MB")
    parity = report.parity
    print(f"\n{'sample':<44}{'mask IoU':>10}{'logit error':>13}")
    for sample in parity.samples:
        label = f"{sample.image}: {sample.expression}"
        label = label if len(label) <= 42 else label[:41] + "…"
        print(f"{label:<44}{sample.iou:>10.5f}{sample.logit_error:>13.2e}")
    print(
        f"{'mean, against FP32 PyTorch':<44}{parity.mean_iou:>10.5f}"
        f"{'(budget ' + format(parity.min_iou, '.3g') + ')':>13}"
    )
    total = sum(report.sizes.values()) / 1e6
    print(f"\n{report.bundle}  ({total:.1f} MB, {'fp16' if fp16 else 'fp32'}, parity proved)")
    print("no TensorRT engine was built: this version writes ONNX graphs only")


def _terminate(number: int, frame: FrameType | None) -> None:
    # An exception unwinds through the writer, which removes what was half-written.
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
