"""`cris-train`: a recipe becomes a checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cris_deploy.cli import Parser, guarded
from cris_deploy.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and train. Exit 0, or 2 for unusable input."""
    args = _parser().parse_intermixed_args(argv)
    return guarded("cris-train", lambda: _tune(args) if args.init is not None else _train(args))


def _train(args: argparse.Namespace) -> int:
    from cris_train.run.loop import train
    from cris_train.run.recipe import read_config

    if args.config is None:
        raise InputError(
            "give a recipe (--config YAML), or a checkpoint to fine-tune (--init FILE)"
        )
    for name in ("data", "output"):
        if (value := getattr(args, name)) is not None:
            raise InputError(f"--{name} goes with --init: with --config write {name}={value}")
    result = train(read_config(args.config, args.overrides), _report, resume=args.resume)
    if result.writes:
        minutes = result.seconds / 60
        _report(f"best mIoU {result.mean_iou:.4f} after {minutes:.1f} min: {result.best}")
    return 0


def _tune(args: argparse.Namespace) -> int:
    from cris_train.run.tune import read_tuning, shown, tune

    config = read_tuning(args.init, args.config, args.overrides, data=args.data, output=args.output)
    tuned = tune(config, _report, resume=args.resume)
    if tuned is not None:
        _report(f"{tuned.checkpoint} after {tuned.seconds / 60:.1f} min; to export it:")
        _report(f"  {shown(tuned.export)}")
    return 0


def _report(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line)  # above the progress bar
    sys.stdout.flush()


def _parser() -> Parser:
    parser = Parser(
        prog="cris-train",
        description="Train a CRIS model by a recipe, or fine-tune a checkpoint; on a CPU or a GPU, "
        "by torchrun on many.",
        examples=(
            "cris-train --config train/configs/refcoco_r50.yaml model.word_len=22 --resume",
            "cris-train --init my_cris.pth --data my_folder",
            "torchrun --nproc-per-node 8 -m cris_train --config train/configs/refcoco_r50.yaml",
        ),
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="YAML", help="the recipe; with --init there is a default")
    add(
        "--init",
        type=Path,
        metavar="FILE",
        help="fine-tune this checkpoint, which gives the model its shape",
    )
    add("--data", type=Path, metavar="DIR", help="with --init: the data set")
    add("--output", type=Path, metavar="DIR", help="with --init: folder of the run (runs/tuned)")
    add("--resume", action="store_true", help="go on where the run in `output` left off")
    add("overrides", nargs="*", metavar="key=value", help="such as seed=1 model.word_len=22")
    return parser


if __name__ == "__main__":
    sys.exit(main())
