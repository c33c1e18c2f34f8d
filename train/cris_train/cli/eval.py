"""`cris-eval`: a checkpoint's metrics on a split, all expressions of all objects."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from cris_deploy.cli import guarded


@dataclass(frozen=True)
class EvalResult:
    """What a checkpoint reaches on a split.

    Attributes:
        expressions: Number of expressions measured.
        mean_iou: mIoU, 0 to 1.
        overall_iou: oIoU, 0 to 1.
        precision: {"Pr@50": share, ...}.
        by_kind: For generated scenes, kind of expression -> (number, mIoU); else empty.
    """

    expressions: int
    mean_iou: float
    overall_iou: float
    precision: dict[str, float]
    by_kind: dict[str, tuple[int, float]]


def evaluate_checkpoint(
    checkpoint: Path, data: Path, split: str, split_by: str, threshold: float
) -> EvalResult:
    """Measure a checkpoint in float32.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DataError: the data set is missing or damaged.
    """
    from cris_train import checkpoint as checkpoints
    from cris_train.data.dataset import ReferData
    from cris_train.data.refer import read_split
    from cris_train.evaluate import evaluate

    model = checkpoints.build(checkpoints.load(checkpoint))
    prepared = ReferData(read_split(data, split, split_by=split_by), model.config)
    kinds = _kinds(data)
    ious: dict[str, list[float]] = defaultdict(list)

    def observe(sentence: int, iou: float) -> None:
        if sentence in kinds:
            ious[kinds[sentence]].append(iou)

    with tqdm(total=len(prepared), unit="image", disable=None) as bar:
        metrics = evaluate(model, prepared, threshold=threshold, tick=bar.update, observe=observe)
    return EvalResult(
        expressions=len(metrics.ious),
        mean_iou=metrics.mean_iou,
        overall_iou=metrics.overall_iou,
        precision=metrics.precision,
        by_kind={k: (len(v), sum(v) / len(v)) for k, v in sorted(ious.items())},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print. Exit 0, or 2 for unusable input."""
    parser = argparse.ArgumentParser(
        prog="cris-eval", description="Measure a checkpoint on a split, at image size."
    )
    parser.add_argument("--ckpt", type=Path, required=True, metavar="FILE", help="the checkpoint")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set")
    parser.add_argument("--split", default="val", help="name of the split (val)")
    parser.add_argument("--split-by", default="unc", help="who split it: unc, umd or google (unc)")
    parser.add_argument("--threshold", type=float, default=0.35, help="of probability (0.35)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)

    def run() -> int:
        result = evaluate_checkpoint(
            args.ckpt, args.data, args.split, args.split_by, args.threshold
        )
        if args.json:
            print(json.dumps(dataclasses.asdict(result), indent=2))
        else:
            print(_table(result))
        return 0

    return guarded("cris-eval", run)


def _table(result: EvalResult) -> str:
    shares = "  ".join(f"{name} {share:.3f}" for name, share in result.precision.items())
    lines = [
        f"{result.expressions:,} expressions: mIoU {result.mean_iou:.4f}  "
        f"oIoU {result.overall_iou:.4f}  {shares}"
    ]
    lines += [
        f"  {kind:<12}{count:>7,}  mIoU {iou:.4f}" for kind, (count, iou) in result.by_kind.items()
    ]
    return "\n".join(lines)


def _kinds(data: Path) -> dict[int, str]:
    """Sentence number -> kind of expression; generated scenes have the file, RefCOCO has not."""
    from cris_train.data.scenes_to_refer import KINDS_FILE

    path = data / KINDS_FILE
    if not path.exists():
        return {}
    return {int(number): kind for number, kind in json.loads(path.read_text()).items()}


if __name__ == "__main__":
    sys.exit(main())
