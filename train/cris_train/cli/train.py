"""`cris-train`: a recipe becomes a checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cris_deploy.cli import guarded


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and train. Exit 0, or 2 for unusable input."""
    parser = argparse.ArgumentParser(
        prog="cris-train", description="Train a CRIS model by a recipe."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="YAML", help="the recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as seed=1 model.word_len=22"
    )
    args = parser.parse_args(argv)

    def run() -> int:
        from cris_train.config import read_config
        from cris_train.loop import train

        result = train(
            read_config(args.config, args.overrides), lambda line: print(line, flush=True)
        )
        print(f"best mIoU {result.mean_iou:.4f} after {result.seconds / 60:.1f} min: {result.best}")
        return 0

    return guarded("cris-train", run)


if __name__ == "__main__":
    sys.exit(main())
