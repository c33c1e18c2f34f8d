"""`cris-scenes`: generated referring scenes on disk, in RefCOCO's format."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cris_deploy.cli import Parser, guarded
from cris_train.synthetic.styles import Style


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and write. Exit 0, or 2 for unusable input."""
    args = _parser().parse_args(argv)

    def run() -> int:
        from cris_train.synthetic.refer_files import write_scenes

        counts = {"train": args.train, "val": args.val}
        asked = {split: count for split, count in counts.items() if count != 0}
        style = Style(args.style)
        write_scenes(args.output, asked, args.seed, workers=args.workers, style=style)
        return 0

    return guarded("cris-scenes", run)


def _parser() -> Parser:
    parser = Parser(
        prog="cris-scenes",
        description="Generate referring scenes (shapes, colours, sizes, positions, relations) in "
        "RefCOCO's own file format.",
        examples=(
            "cris-scenes data/scenes",
            "cris-scenes data/few --train 200 --val 20 --seed 1",
            "cris-scenes data/chalk --train 500 --val 0 --style chalk",
        ),
    )
    parser.add_argument("output", type=Path, help="folder of the data set")
    parser.add_argument(
        "--train", type=int, default=20000, metavar="N", help="scenes (20000); 0: none"
    )
    parser.add_argument("--val", type=int, default=500, metavar="N", help="scenes (500); 0: none")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all splits (0)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (2)")
    parser.add_argument(
        "--style", choices=[*Style], default=Style.PLAIN, help="how they look (plain)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
