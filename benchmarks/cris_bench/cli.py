"""`cris-bench`: the engine among its peers on this machine."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from cris_bench.options import (
    DEFAULT_SCOPES,
    MINUTES,
    MOST_ROUNDS,
    QUICK_MINUTES,
    WARMUP,
    BenchOptions,
    parse_size,
)
from cris_bench.progress import Progress
from cris_bench.record.file import write_record
from cris_bench.record.rows import Scope
from cris_deploy.cli import Parser, guarded
from cris_deploy.documents import to_json
from cris_deploy.errors import InputError
from cris_deploy.execution.backends import AUTO, BackendName, Compute

SUBCOMMANDS: Final = {
    "kernels": "cris_bench.report.kernels",
    "compare": "cris_bench.report.compare",
    "report": "cris_bench.report.document",
    "cost": "cris_bench.report.cost",
    "batcher": "cris_bench.scopes.batcher",
    "browser": "cris_bench.scopes.browser",
    "ray": "cris_bench.scopes.ray_losses",
    "serve": "cris_bench.scopes.serving",
    "video": "cris_bench.scopes.video",
    "ways": "cris_bench.scopes.ways",
}
"""Name -> module with its `main`, imported when it is asked for."""
ALL: Final = "all"

_E = TypeVar("_E", bound=StrEnum)


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch to a subcommand, or measure. Exit 0, or 2 for unusable input."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given and given[0] in SUBCOMMANDS:
        module = importlib.import_module(SUBCOMMANDS[given[0]])
        command: Callable[[Sequence[str]], int] = module.main
        return command(given[1:])
    args = _parser().parse_args(given)

    def run() -> int:
        options = _options(args, given)
        # torch takes seconds to import: not for --help, nor for a typing error
        from cris_bench.report.summary import terminal
        from cris_bench.run import run as measure

        with Progress(options.minutes) as progress:
            record = measure(options, progress.step, progress.tick)
        if args.output is not None:
            write_record(args.output, record)
        print(to_json(record).rstrip() if args.json else terminal(record, args.price))
        return 0

    return guarded("cris-bench", run)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-bench",
        description="Time CRIS on this machine: PyTorch eager, torch.compile and plain exports "
        "against the engine, in interleaved rounds. Without arguments: the paper's full-size RN50 "
        "with random weights, the network alone and end to end.",
        epilog="Subcommands: cris-bench kernels (the mask step), cris-bench compare A B, "
        "cris-bench report RECORD...",
        examples=(
            "cris-bench --bundle my.bundle --precision fp32 -o record.json",
            "cris-bench --ckpt my.pth --device cuda --scopes all --batch 1,8 --expressions 1,8",
        ),
    )
    add = parser.add_argument
    add("--ckpt", type=Path, metavar="FILE", help="model (default: RN50 with random weights)")
    add("--bundle", type=Path, metavar="DIR", help="this bundle; with --ckpt also its peers")
    add(
        "--scopes",
        default=",".join(DEFAULT_SCOPES),
        metavar="LIST",
        help=f"all, or some of {', '.join(Scope)} (default: {','.join(DEFAULT_SCOPES)})",
    )
    add("--device", default=AUTO, metavar="NAME", help="auto, cpu, cuda or cuda:N (auto)")
    add("--backend", metavar="LIST", help=f"some of {', '.join(BackendName)} (all installed)")
    add("--precision", metavar="LIST", help=f"some of {', '.join(Compute)} (all that can be had)")
    add("--batch", default="1", metavar="LIST", help="images of a pass, such as 1,8 (1)")
    add("--expressions", default="1", metavar="LIST", help="expressions for one image (1)")
    add("--image-size", default="1920x1080", metavar="WxH", help="of a picture (1920x1080)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    add("--clients", metavar="LIST", help="also throughput under so many callers, such as 1,4,8")
    add("--client-threads", metavar="LIST", help="CPU threads of their calls, such as 1,2 (all)")
    add("--price", type=float, metavar="DOLLARS", help="of this machine for an hour: adds costs")
    add("--no-peers", action="store_true", help="leave torch.compile and plain exports out")
    add("--quick", action="store_true", help="3 minutes; no torch.compile, int8, ceilings")
    add(
        "--minutes",
        type=float,
        metavar="M",
        help=f"that the run may take, 0 for no end ({MINUTES:g}); who does not fit is named",
    )
    add("--eval", type=Path, metavar="DATA", help="also the bundles' accuracy on a data set")
    add("--eval-limit", type=int, default=0, metavar="N", help="its first N pictures (all)")
    add(
        "--warmup", type=int, default=WARMUP, metavar="N", help=f"untimed rounds, {WARMUP} at least"
    )
    add(
        "--iterations",
        type=int,
        metavar="N",
        help=f"timed rounds (until intervals are tight, at most {MOST_ROUNDS})",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the order in each round (0)")
    add("--json", action="store_true", help="print the record, raw times included")
    add("-o", "--output", type=Path, metavar="FILE", help="also write the record")
    return parser


def _options(args: argparse.Namespace, given: Sequence[str]) -> BenchOptions:
    height, width = parse_size("--image-size", args.image_size)
    minutes = QUICK_MINUTES if args.quick else MINUTES
    return BenchOptions(
        scopes=_scopes(args.scopes),
        checkpoint=args.ckpt,
        bundle=args.bundle,
        device=args.device,
        backends=_names(BackendName, "--backend", args.backend),
        computes=_names(Compute, "--precision", args.precision),
        batches=_numbers("--batch", args.batch),
        expressions=_numbers("--expressions", args.expressions),
        image_height=height,
        image_width=width,
        warmup=args.warmup,
        iterations=args.iterations,
        minutes=minutes if args.minutes is None else args.minutes,
        seed=args.seed,
        threads=args.threads,
        clients=_numbers("--clients", args.clients) if args.clients else (),
        thread_counts=_numbers("--client-threads", args.client_threads)
        if args.client_threads
        else (),
        peers=not args.no_peers,
        quick=args.quick,
        evaluate=args.eval,
        eval_limit=args.eval_limit,
        command=tuple(given),
    )


def _scopes(text: str) -> tuple[Scope, ...]:
    return tuple(Scope) if text == ALL else _names(Scope, "--scopes", text)


def _names(enum: type[_E], flag: str, text: str | None) -> tuple[_E, ...]:
    if text is None:
        return ()
    try:
        return tuple(dict.fromkeys(enum(part.strip()) for part in text.split(",")))
    except ValueError:
        raise InputError(f"{flag} {text}: give some of {', '.join(enum)}, with commas") from None


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag} {text}: give numbers with commas, such as 1,8") from None


if __name__ == "__main__":
    sys.exit(main())
