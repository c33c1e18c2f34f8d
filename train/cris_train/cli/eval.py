"""`cris-eval`: metrics of a checkpoint or a bundle, all expressions of all objects of a split."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cris_deploy.cli import Parser, add_trust, guarded
from cris_deploy.documents import to_json
from cris_deploy.execution.backends import AUTO, BackendName, Compute, Device

if TYPE_CHECKING:
    from cris_train.evaluation.report import Difference, EvalReport

_STDOUT = Path("-")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print. Exit 0, or 2 for unusable input."""
    args = _parser().parse_args(argv)

    def run() -> int:
        # torch takes seconds to import: not for --help or a mistyped flag
        from cris_deploy.files import make_folder, write_whole
        from cris_train.evaluation.gallery import Gallery
        from cris_train.evaluation.measure import EvalOptions, measure
        from cris_train.evaluation.report import compare, read_report
        from cris_train.evaluation.report_text import describe

        options = EvalOptions(
            checkpoint=args.ckpt,
            bundle=args.bundle,
            data=args.data,
            images=args.images,
            splits=tuple(args.split.split(",")),
            split_by=args.split_by,
            backend=args.backend,
            device=args.device,
            precision=args.precision,
            threshold=args.threshold,
            word_len=args.word_len,
            limit=args.limit,
            skip_broken=args.skip_broken,
            manifest_sha256=args.manifest_sha256,
            require_signature=args.require_signature,
        )
        other = read_report(args.compare) if args.compare is not None else None
        if args.output is not None:
            make_folder(args.output)
        gallery = Gallery()
        report = measure(options, gallery.add)
        differences = compare(report, other) if other is not None else ()
        if args.output is not None:
            _write(args.output, report, differences, gallery)
        text = _json(report, differences)
        if args.json == _STDOUT:
            print(text)
            return 0
        if args.json is not None:
            write_whole(args.json, text.encode())
        print(describe(report, differences))
        if args.output is not None:
            print(f"\n{args.output / 'report.md'}")
        return 0

    return guarded("cris-eval", run)


def _write(
    folder: Path, report: EvalReport, differences: Sequence[Difference], gallery: Any
) -> None:
    from cris_deploy.files import write_whole
    from cris_train.evaluation.report_text import markdown

    title = f"{report.measured.name} on {report.data}"
    sheets = [path.name for path in gallery.write(folder, title)]
    write_whole(folder / "report.md", markdown(report, differences, sheets).encode())
    write_whole(folder / "report.json", _json(report, differences).encode())


def _json(report: EvalReport, differences: Sequence[Difference]) -> str:
    document = report.to_json()
    if differences:
        document["difference_in_points"] = {d.split: dict(d.points) for d in differences}
    return to_json(document)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-eval",
        description="Measure a checkpoint or a bundle at image size, on all expressions of all "
        "objects: mIoU, oIoU, Pr@50 to Pr@90.",
        examples=(
            "cris-eval --ckpt best.pth --data data/refcoco --split val,testA --output report/",
            "cris-eval --bundle refcoco.bundle --data data/refcoco --compare report/report.json",
        ),
    )
    what = parser.add_argument_group("what to measure (one of the two)")
    what.add_argument("--ckpt", type=Path, metavar="FILE", help="a checkpoint, in PyTorch")
    what.add_argument("--bundle", type=Path, metavar="DIR", help="a bundle, as it will serve")
    add_trust(what)
    data = parser.add_argument_group("on what")
    data.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set")
    data.add_argument(
        "--images", type=Path, metavar="DIR", help="its pictures (default: the data set's own)"
    )
    data.add_argument(
        "--split", default="val", metavar="NAMES", help="splits, such as val,testA,testB (val)"
    )
    data.add_argument("--split-by", default="unc", help="who split it: unc, umd or google (unc)")
    data.add_argument(
        "--limit", type=int, default=0, metavar="N", help="only the first N pictures of each split"
    )
    data.add_argument(
        "--skip-broken",
        action="store_true",
        help="leave out what cannot be used, and name it (default: an error)",
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--backend", default=AUTO, choices=[AUTO, *BackendName], help="a bundle's runtime (auto)"
    )
    how.add_argument("--device", default=AUTO, choices=[AUTO, *Device], help="device (auto)")
    how.add_argument(
        "--precision", default=AUTO, choices=[AUTO, *Compute], help="arithmetic (auto)"
    )
    how.add_argument(
        "--threshold", type=float, metavar="P", help="of probability (the bundle's own, or 0.35)"
    )
    how.add_argument(
        "--word-len",
        type=int,
        metavar="N",
        help="tokens of an expression, for a checkpoint that does not say: 17 for RefCOCO and "
        "RefCOCO+ (on which it is the default), 22 for G-Ref",
    )
    out = parser.add_argument_group("results")
    out.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=_STDOUT,
        metavar="FILE",
        help="write JSON to a file, or print it in place of the tables",
    )
    out.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for report.json, report.md and picture sheets: best, worst, random, first",
    )
    out.add_argument(
        "--compare", type=Path, metavar="JSON", help="an earlier report: differences in points"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
