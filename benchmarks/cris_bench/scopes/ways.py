"""`cris-bench ways`: what each way to ask adds to the engine, in turns of one run."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cris_bench.options import parse_size
from cris_bench.record.machine import cores, describe
from cris_bench.scopes.command import add_common, run_command
from cris_bench.scopes.inputs import Fresh
from cris_bench.ways import askers
from cris_bench.ways.askers import Ask
from cris_bench.ways.triton_server import VENV as TRITON_VENV
from cris_bench.ways.triton_server import triton_server
from cris_bench.ways.triton_server import why_not as why_no_triton
from cris_bench.ways.web_servers import RAY_VENV, cris_serve, ray_serve, why_no_ray
from cris_deploy.cli import Parser, tables
from cris_deploy.engine import Engine
from cris_deploy.errors import BackendError, InputError
from cris_deploy.execution.backends import AUTO, BackendName

_WARM_UP: Final = 5
"""Turns that are not counted."""
_PAUSE: Final = 0.01
"""Seconds before a request, in which the servers end what follows their last answer."""
_RESAMPLES: Final = 2000
_TENTH: Final = 10


class Way(StrEnum):
    """The ways, in the order of the table."""

    ENGINE = "engine"
    BATCHER = "batcher"
    REST = "cris-serve, /v1/segment"
    V2 = "cris-serve, Open Inference"
    TRITON_HTTP = "Triton, HTTP"
    TRITON_GRPC = "Triton, gRPC"
    RAY = "Ray Serve, /v1/segment"


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of a way's requests, one a turn: pictures that are new, and one that is known.

    `missing` says why there are none.
    """

    way: Way
    new_ms: tuple[float, ...] = ()
    known_ms: tuple[float, ...] = ()
    missing: str | None = None


@dataclass(frozen=True, slots=True)
class WaysRecord:
    """A run of `cris-bench ways`."""

    machine: Any
    bundle: str
    choice: str
    picture: str
    ways: tuple[Times, ...]
    command: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure. Exit 0, or 2 for unusable input."""
    return run_command(_parser(), argv, measure, describe_run)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-bench ways",
        description="Time each way to ask a bundle, one client, in turns: in this process, and "
        "through the servers that are installed. What is not is listed with the reason.",
        examples=(
            "cris-bench ways demo/scenes.bundle --turns 300",
            "cris-bench ways r50.bundle --image-size 1920x1080 -o ways.json",
        ),
    )
    add_common(parser)
    add = parser.add_argument
    add("--image-size", default="640x480", metavar="WxH", help="of the JPEGs (640x480)")
    add("--turns", type=int, default=100, metavar="N", help="requests of each way (100)")
    add("--backend", default=AUTO, choices=[AUTO, *BackendName])
    for name, default in (("triton", TRITON_VENV), ("ray", RAY_VENV)):
        what = f"environment that has {name.capitalize()} ({default})"
        add(f"--{name}-venv", type=Path, default=default, metavar="DIR", help=what)
    return parser


def measure(args: argparse.Namespace, command: tuple[str, ...]) -> WaysRecord:
    """Open all ways, and take turns."""
    if args.turns < 2:
        raise InputError(f"--turns is {args.turns}: give 2 or more")
    height, width = parse_size("--image-size", args.image_size)
    with ExitStack() as opened:
        engine = opened.enter_context(Engine(args.bundle, backend=args.backend))
        openers = _openers(args, engine)
        missing = {way: found for way, found in openers.items() if isinstance(found, str)}
        asks = {
            way: opened.enter_context(found)
            for way, found in openers.items()
            if not isinstance(found, str)
        }
        times = _take_turns(asks, engine, Fresh(height, width), args.turns)
        choice = f"{engine.info.backend} on {engine.info.device} in {engine.info.compute}"
    ways = tuple(times.get(way) or Times(way, missing=missing[way]) for way in Way)
    picture = f"JPEG of {width} x {height}"
    return WaysRecord(describe(), args.bundle.name, choice, picture, ways, command)


def describe_run(record: WaysRecord) -> str:
    """Give the figures as a table in Markdown."""
    present = [times for times in record.ways if times.missing is None]
    base = present[0]
    assert base.way is Way.ENGINE  # which is always here
    headings = (
        *("way", "new picture, ms", "p95", "added", "p95 of it", "less than a tenth from, ms"),
        *("known picture, ms", "added"),
    )
    rows = []
    for times in record.ways:
        if times.missing is not None:
            rows.append((str(times.way), "missing", *[""] * 6))
            continue
        is_base = times is base
        new, known = _added(times.new_ms, base.new_ms), _added(times.known_ms, base.known_ms)
        rows.append(
            (
                str(times.way),
                f"{np.median(times.new_ms):.2f}",
                f"{np.percentile(times.new_ms, 95):.2f}",
                "" if is_base else _interval(new, 50),
                "" if is_base else _interval(new, 95),
                "" if is_base else f"{_TENTH * max(0.0, float(np.median(new))):.0f}",
                f"{np.median(times.known_ms):.2f}",
                "" if is_base else _interval(known, 50),
            )
        )
    lines = [
        f"{record.bundle}: {record.choice}; {record.picture}; {len(base.new_ms)} turns, one client",
        "",
        tables.to_markdown(headings, rows),
        "",
        "added: to the engine's time in the same turn, median or 95th percentile, and its 95% "
        "interval; less than a tenth from: what the engine has to take for that.",
        *(f"{times.way}: missing: {times.missing}" for times in record.ways if times.missing),
    ]
    return "\n".join(lines)


def _openers(
    args: argparse.Namespace, engine: Engine
) -> dict[Way, AbstractContextManager[Ask] | str]:
    """How each way is opened, or why it is not here."""
    serve = _missing("serve", "fastapi", "uvicorn")
    client = serve or _missing("dev", "tritonclient", "geventhttpclient")
    no_triton = why_no_triton(args.triton_venv) or _missing("dev", "tritonclient")
    protocols = {Way.TRITON_HTTP: ("http", "geventhttpclient"), Way.TRITON_GRPC: ("grpc", "grpc")}
    found: dict[Way, AbstractContextManager[Ask] | str] = {
        Way.ENGINE: askers.in_process(engine),
        Way.BATCHER: askers.batched(engine),
        Way.REST: serve or _through(_cris_serve(args), askers.rest),
        Way.V2: client or _through(_cris_serve(args), askers.open_inference),
        Way.RAY: why_no_ray(args.ray_venv) or _through(_ray(args), askers.rest),
    }
    for way, (protocol, package) in protocols.items():
        reason = no_triton or _missing("dev", package)
        found[way] = reason or _through(_triton(args, protocol), _triton_asker(protocol))
    return {way: found[way] for way in Way}


def _missing(extra: str, *packages: str) -> str | None:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"{', '.join(absent)} not installed: pip install 'cris-deploy[{extra}]'"


@contextmanager
def _through(
    server: AbstractContextManager[str], asker: Callable[[str], AbstractContextManager[Ask]]
) -> Iterator[Ask]:
    # A server each, since what one way has asked would be in the other's caches.
    with server as address, asker(address) as ask:
        yield ask


@contextmanager
def _cris_serve(args: argparse.Namespace) -> Iterator[str]:
    with cris_serve(args.bundle, ("--backend", args.backend)) as server:
        yield server.address


@contextmanager
def _ray(args: argparse.Namespace) -> Iterator[str]:
    arguments = {"backend": args.backend, "cpus": cores()}
    with ray_serve(args.bundle, arguments, args.ray_venv) as server:
        yield server.address


@contextmanager
def _triton(args: argparse.Namespace, protocol: str) -> Iterator[str]:
    from cris_deploy.serving.triton import ModelSettings
    from cris_export.triton.options import RepositoryOptions, StageKind
    from cris_export.triton.repository import write_repository

    with tempfile.TemporaryDirectory(prefix="cris-models-") as folder:
        models = Path(folder) / "models"
        settings = ModelSettings(backend=args.backend)
        write_repository(args.bundle, models, RepositoryOptions(StageKind.NONE, settings=settings))
        with triton_server(models, venv=args.triton_venv) as server:
            yield server.http if protocol == "http" else server.grpc


def _triton_asker(protocol: str) -> Callable[[str], AbstractContextManager[Ask]]:
    module = importlib.import_module(f"tritonclient.{protocol}")
    return lambda address: askers.triton(address, module)


def _take_turns(asks: dict[Way, Ask], engine: Engine, fresh: Fresh, turns: int) -> dict[Way, Times]:
    """Each way once a turn; afterwards all answers are checked."""
    ways, same, order = list(asks), fresh.file(), np.random.default_rng(0)
    asked: list[tuple[Way, bytes, str, str]] = []
    new: dict[Way, list[float]] = {way: [] for way in ways}
    known: dict[Way, list[float]] = {way: [] for way in ways}
    with tqdm(total=2 * (turns + _WARM_UP), unit="turn", leave=False, disable=None) as bar:
        for store in (new, known):
            for turn in range(turns + _WARM_UP):
                # In an order drawn anew: who comes after a way has what it leaves, warm or busy.
                for way in map(ways.__getitem__, order.permutation(len(ways))):
                    # Of one size and kind, and nobody has seen it: two ways share an engine.
                    picture = fresh.file() if store is new else same
                    words = fresh.expression()
                    sleep(_PAUSE)
                    began = perf_counter()
                    answer = asks[way](picture, words)
                    elapsed = 1e3 * (perf_counter() - began)
                    asked.append((way, picture, words, answer))
                    if turn >= _WARM_UP:
                        store[way].append(elapsed)
                bar.update()
    for way, picture, words, answer in asked:
        if answer != engine.segment(picture, words).rle()["counts"]:
            raise BackendError(f"{way} gave another mask than the engine")
    return {way: Times(way, tuple(new[way]), tuple(known[way])) for way in ways}


def _added(times: Sequence[float], base: Sequence[float]) -> NDArray[np.float64]:
    return np.subtract(times, base)


def _interval(values: NDArray[np.float64], percent: int) -> str:
    """A percentile and the middle 95% of those of resamples (bootstrap)."""
    drawn = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.percentile(np.percentile(values[drawn], percent, axis=1), (2.5, 97.5))
    return f"{np.percentile(values, percent):+.2f} ({low:+.2f} to {high:+.2f})"


if __name__ == "__main__":
    sys.exit(main())
