"""`cris-bench kernels`: the mask step's times as a table, or as a record."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cris_bench.options import parse_size
from cris_bench.report.section import Section, to_text
from cris_bench.scopes.kernels import (
    SIZES,
    SOURCE,
    Content,
    KernelOptions,
    KernelsResult,
    SizeResult,
    run,
)
from cris_bench.scopes.timing import paired_ratio
from cris_deploy.cli import Parser, guarded
from cris_deploy.documents import to_json
from cris_deploy.files import write_whole

_PROGRAM: Final = "cris-bench kernels"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or with --json the record. Exit 0, or 2 for unusable input."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))

    def action() -> int:
        options = KernelOptions(
            sizes=tuple(parse_size("--size", text) for text in args.size) or SIZES,
            content=Content(args.logits),
            warmup=args.warmup,
            iterations=args.iterations,
            threads=args.threads,
            seed=args.seed,
        )
        result = run(options)
        record = to_json(result)
        if args.output is not None:
            write_whole(args.output, record.encode())
        print(record.rstrip() if args.json else to_text(sections(result)))
        return 0

    return guarded(_PROGRAM, action)


def sections(result: KernelsResult) -> list[Section]:
    """What ran, then each size of image."""
    machine = result.machine
    intro = [
        f"{machine.cpu}, {result.threads} threads, {result.simd}; "
        f"{SOURCE} x {SOURCE} logits ({result.options.content.value}), "
        f"medians of {result.options.iterations}",
        ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
    ]
    if result.device is not None and result.bandwidth is not None:
        intro.append(f"{result.device}, copies {result.bandwidth / 1e9:.0f} GB/s")
    return [Section("", tuple(intro)), *(_size(size, result.bandwidth) for size in result.sizes)]


def _size(size: SizeResult, bandwidth: float | None) -> Section:
    baseline = size.timings[0]
    rows = []
    for timing in size.timings:
        share = ""
        if timing.name.startswith("cuda"):  # not in turn with the reference, as the CPU's are
            ratio = statistics.median(baseline.seconds) / statistics.median(timing.seconds)
            if bandwidth is not None:
                moved = size.height * size.width + SOURCE * SOURCE * 4
                share = f"{moved / statistics.median(timing.seconds) / bandwidth:.1%}"
        else:
            ratio = paired_ratio(baseline, timing)
        rows.append(
            (timing.name, f"{timing.median_ms:.3f}", f"{ratio:.1f}", f"{timing.spread:.1%}", share)
        )
    columns = ("mask step", "ms", "x", "spread", "of the copy bandwidth")
    shown = len(columns) if any(cells[-1] for cells in rows) else len(columns) - 1
    return Section(
        "",
        (
            f"{size.width} x {size.height}: {size.differing} pixels differ from the reference, "
            f"{size.decided} of them decided",
        ),
        columns[:shown],
        tuple(cells[:shown] for cells in rows),
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Time the compiled mask step against PyTorch's resize and OpenCV's warp.",
        examples=(
            "cris-bench kernels --threads 1",
            "cris-bench kernels --size 1920x1080 --logits noise --iterations 200 -o kernels.json",
        ),
    )
    add = parser.add_argument
    add("--size", action="append", default=[], metavar="WxH", help="image size (three)")
    add(
        "--logits",
        choices=[content.value for content in Content],
        default=Content.BLOBS.value,
        help="what the logits hold (blobs, as a network's; noise is the worst case)",
    )
    add("--warmup", type=int, default=5, metavar="N", help="untimed rounds (5)")
    add("--iterations", type=int, default=50, metavar="N", help="timed rounds (50)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    add("--seed", type=int, default=0, metavar="N", help="of the logits (0)")
    add("--json", action="store_true", help="print the record, raw times included")
    add("-o", "--output", type=Path, metavar="FILE", help="also write the record")
    return parser


if __name__ == "__main__":
    sys.exit(main())
