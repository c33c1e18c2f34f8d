"""`cris-train`: a recipe becomes a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cris_deploy.cli import Parser, guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and train. Exit 0, or 2 for unusable input."""
    args = _parser().parse_intermixed_args(argv)

    def run() -> int:
        from tqdm import tqdm

        from cris_train.run.loop import train
        from cris_train.run.recipe import read_config

        def report(line: str) -> None:
            tqdm.write(line)  # above the progress bar
            sys.stdout.flush()

        result = train(read_config(args.config, args.overrides), report, resume=args.resume)
        if result.writes:
            minutes = result.seconds / 60
            report(f"best mIoU {result.mean_iou:.4f} after {minutes:.1f} min: {result.best}")
        return 0

    return guarded("cris-train", run)


def _parser() -> Parser:
    parser = Parser(
        prog="cris-train",
        description="Train a CRIS model by a recipe, on a CPU or a GPU; by torchrun on many.",
        examples=(
            "cris-train --config train/configs/refcoco_r50.yaml model.word_len=22 --resume",
            "torchrun --nproc-per-node 8 -m cris_train --config train/configs/refcoco_r50.yaml",
        ),
    )
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="the recipe")
    parser.add_argument(
        "--resume", action="store_true", help="go on where the run in `output` left off"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as seed=1 model.word_len=22"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
