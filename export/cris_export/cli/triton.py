"""`cris-export triton`: a model repository for Triton Inference Server. Needs no PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cris_deploy.cli import Parser, add_trust, guarded, open_bundle
from cris_deploy.cli.tables import to_text
from cris_deploy.errors import InputError
from cris_deploy.execution.backends import AUTO, BackendName, Compute
from cris_deploy.serving.triton import ModelSettings
from cris_export.cli import Steps
from cris_export.triton.options import RepositoryOptions, StageKind


def main(argv: Sequence[str] | None = None) -> int:
    """Write, and print a table of the models; exit 0, or 2 for unusable input."""
    args = _parser().parse_args(argv)
    return guarded("cris-export", lambda: _run(args))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-export triton",
        description="Write a model repository for Triton Inference Server: the model cris, which "
        "segments pictures, and the network's stages for those who compose their own.",
        epilog="A repository that this command wrote is replaced, anything else is refused.",
        examples=(
            "cris-export triton x.bundle models/",
            "cris-export triton x.bundle models/ --gpus 0,1 --stages tensorrt",
        ),
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="what cris-export wrote")
    add_trust(parser)
    add("repository", type=Path, metavar="REPO", help="the folder to write")
    add(
        "--stages",
        choices=[*StageKind],
        default=StageKind.ONNXRUNTIME,
        help="what runs the stages and their ensemble as models of their own (onnxruntime)",
    )
    add("--gpus", default="", metavar="LIST", help="GPUs that have instances, such as 0,1 (CPU)")
    options = RepositoryOptions()
    for flag, value, what in (
        ("--instances", options.instances, "of each model, per GPU or on the CPU"),
        ("--max-batch", options.max_batch, "requests in one call of a model"),
        ("--waiting", options.waiting, "requests that may wait for a model"),
    ):
        add(flag, type=int, default=value, metavar="N", help=f"{what} ({value})")
    add(
        "--strings",
        action="store_true",
        help="offer expressions as BYTES, too: only for servers whose Python backend was compiled "
        "with NumPy 2; others end on the first such request",
    )
    engine = parser.add_argument_group("engine of the model cris")
    engine.add_argument("--backend", default=AUTO, choices=[AUTO, *BackendName])
    engine.add_argument("--precision", default=AUTO, choices=[AUTO, *Compute])
    settings = ModelSettings()
    for flag, number, what in (
        ("--threads", settings.threads, "CPU threads of an instance; 0: all cores"),
        ("--streams", settings.streams, "runs at once"),
        ("--timeout", settings.timeout, "seconds to an answer"),
    ):
        engine.add_argument(
            flag, type=type(number), default=number, metavar="N", help=f"{what} ({number:g})"
        )
    return parser


def _run(args: argparse.Namespace) -> int:
    from cris_deploy import documents
    from cris_export.triton.repository import write_repository

    names = ("backend", "precision", "threads", "streams", "timeout")
    given = {name: getattr(args, name) for name in names}
    options = RepositoryOptions(
        stages=StageKind(args.stages),
        gpus=_gpus(args.gpus),
        instances=args.instances,
        max_batch=args.max_batch,
        waiting=args.waiting,
        strings=args.strings,
        settings=documents.convert(ModelSettings, given, "the options"),
    )
    steps = Steps()
    written = write_repository(open_bundle(args), args.repository, options, steps)
    rows = [(model.name, model.platform, f"{model.size / 1e6:.1f}") for model in written]
    print(to_text(("model", "run by", "MB"), rows))
    print(f"\n{args.repository}: how to serve it is in {args.repository / 'README.md'}")
    return 0


def _gpus(text: str) -> tuple[int, ...]:
    try:
        gpus = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        gpus = (-1,)
    if any(gpu < 0 for gpu in gpus):
        raise InputError(f"--gpus {text}: give numbers with commas, such as 0,1")
    return gpus
