"""`cris-scenes`: generated referring scenes on disk, in RefCOCO's format."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cris_deploy.cli import Parser, guarded
from cris_deploy.errors import InputError
from cris_train.synthetic.styles import Style


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and write. Exit 0, or 2 for unusable input."""
    args = _parser().parse_args(argv)

    def run() -> int:
        from cris_train.synthetic.made import Maker
        from cris_train.synthetic.named import sources
        from cris_train.synthetic.named.maker import NamedMaker
        from cris_train.synthetic.named.scenes import LONG_SIDE
        from cris_train.synthetic.refer_files import ShapesMaker, write_scenes

        cache = args.cache if args.cache is not None else sources.default_cache()
        tuxpaint = args.pictures == "tuxpaint"
        if args.fetch:
            sources.fetch(cache, tuxpaint=tuxpaint)
        if args.output is None:
            if args.fetch:
                return 0
            raise InputError("output is missing: give the folder of the data set, or --fetch")
        maker: Maker = ShapesMaker(Style(args.style))
        if args.kind != "shapes":
            if args.style != Style.PLAIN:
                raise InputError("style is of shapes: leave it out, or take kind shapes")
            sources.require(cache, tuxpaint=tuxpaint)
            side = LONG_SIDE if args.long_side is None else args.long_side
            maker = NamedMaker(
                cache, first_lesson=args.kind == "names", long_side=side, tuxpaint=tuxpaint
            )
        elif args.long_side is not None or tuxpaint:
            raise InputError("long_side and pictures are of named things: take kind named")
        counts = {"train": args.train, "val": args.val}
        if args.test:
            counts["test"] = args.test
        asked = {split: count for split, count in counts.items() if count != 0}
        write_scenes(args.output, asked, args.seed, workers=args.workers, maker=maker)
        return 0

    return guarded("cris-scenes", run)


def _parser() -> Parser:
    parser = Parser(
        prog="cris-scenes",
        description="Generate referring scenes in RefCOCO's own file format: coloured shapes, or "
        "pictures of named things on photographs, which --fetch gets with npm and pip.",
        examples=(
            "cris-scenes data/scenes",
            "cris-scenes data/few --train 200 --val 20 --seed 1",
            "cris-scenes data/chalk --train 500 --val 0 --style chalk",
            "cris-scenes --fetch",
            "cris-scenes data/named --kind named --test 500",
            "cris-scenes data/tux --kind named --pictures tuxpaint --train 0 --val 0 --test 500",
        ),
    )
    parser.add_argument("output", type=Path, nargs="?", help="folder of the data set")
    parser.add_argument(
        "--kind", choices=("shapes", "names", "named"), default="shapes",
        help="what is in them; names: two or three large named things and no more than their "
        "names, to learn from first (shapes)",
    )  # fmt: skip
    parser.add_argument(
        "--style", choices=[*Style], default=Style.PLAIN, help="how shapes look (plain)"
    )
    parser.add_argument(
        "--long-side", type=int, metavar="N", help="of pictures of named things, pixels (256)"
    )
    parser.add_argument(
        "--pictures", choices=("fluent", "tuxpaint"), default="fluent",
        help="of named things; tuxpaint: photographs of fewer things with the same names, from "
        "Debian's package (161 MB), to measure with (fluent)",
    )  # fmt: skip
    parser.add_argument(
        "--train", type=int, default=20000, metavar="N", help="scenes (20000); 0: none"
    )
    parser.add_argument("--val", type=int, default=500, metavar="N", help="scenes (500); 0: none")
    parser.add_argument(
        "--test", type=int, default=0, metavar="N",
        help="scenes; named ones have backgrounds, and say things of names, that no other has (0)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all splits (0)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (2)")
    parser.add_argument(
        "--fetch", action="store_true",
        help="fetch the pictures of named things (16 MB and 14 MB); alone, only that",
    )  # fmt: skip
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="folder of these pictures (~/.cache/cris/named)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
