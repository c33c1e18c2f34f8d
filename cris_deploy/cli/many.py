"""cris-segment --ray: the arguments of a job on Ray Data, its progress and its summary."""

import argparse
import json
import sys
from typing import Any, Final

from cris_deploy.errors import InputError

_INSTALL: Final = "--ray needs Ray: pip install 'cris-deploy[ray]'"
_VIDEO: Final = ("reuse", "frames")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a job has beside the rest; it is asked for by `--ray`."""
    group = parser.add_argument_group("many pictures, by Ray Data (docs/ray.md)")
    add = group.add_argument
    add("--ray", action="store_true", help="on this machine, or the cluster of RAY_ADDRESS")
    add("--workers", type=int, metavar="N", help="engines (1)")
    add("--gpus", type=float, metavar="N", help="of an engine; 0.5: two share one (1, or 0)")


def asked(args: argparse.Namespace) -> bool:
    """Whether it is a job on Ray. Raises InputError for what does not go together."""
    for flag in ("workers", "gpus"):
        if getattr(args, flag) is not None and not args.ray:
            raise InputError(f"--{flag} is for --ray: add it, or drop --{flag}")
    for flag in _VIDEO:
        if getattr(args, flag) is not None and args.ray:
            raise InputError(f"--{flag} is for videos, which --ray does not read: drop one of them")
    return bool(args.ray)


def segment(args: argparse.Namespace, engine: dict[str, Any]) -> int:
    """Do the job, or the rest of it. Gives the exit code: 2 if a row has an error."""
    from tqdm import tqdm

    try:
        from cris_deploy.batch.job import JobOptions, run_job
    except ImportError as error:
        raise InputError(f"{_INSTALL} ({error})") from None
    from cris_deploy.bundle.signature import key_text

    if engine["require_signature"] is not None:  # its file need not be where workers are
        engine["require_signature"] = key_text(engine["require_signature"])
    options = JobOptions(
        bundle=str(args.bundle.absolute()),
        image=args.image,
        output=args.output,
        expressions=tuple(args.expressions),
        workers=1 if args.workers is None else args.workers,
        gpus=args.gpus,
        threshold=args.threshold,
        **{name: engine.pop(name) for name in ("threads", "max_pixels", "backend", "precision")},
        engine=engine,
    )
    # None hides the bar where stderr is no terminal; what was done before is no speed of today's.
    with tqdm(unit="image", disable=None) as bar:

        def told(finished: int, total: int) -> None:
            if bar.total is None:
                bar.reset(total)
                bar.initial = finished
            bar.n = finished
            bar.refresh()

        done = run_job(options, told)
    if args.json:
        print(json.dumps({"output": args.output, "rows": done.rows, "errors": done.errors}))
    else:
        print(f"{args.output}  {done.rows:,} rows of {len(done.sources):,} images")
    if done.errors:
        print(
            f"cris-segment: error: {done.errors:,} rows have an error: see the column error",
            file=sys.stderr,
        )
        return 2
    return 0
