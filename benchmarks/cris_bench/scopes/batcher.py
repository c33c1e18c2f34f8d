"""`cris-bench batcher`: many callers on one engine, with and without a batcher."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from cris_bench.record.machine import Machine, describe
from cris_bench.scopes.command import add_common, run_command
from cris_deploy.batcher import Batcher, BatchLimits
from cris_deploy.cli import Parser, tables
from cris_deploy.engine import Engine
from cris_deploy.errors import InputError
from cris_deploy.execution.backends import AUTO, BackendName
from cris_deploy.pixels.image import Pixels

_SIZE: Final = (240, 320, 3)
_WORDS: Final = tuple(
    f"the {size} {colour} {shape}"
    for size in ("small", "big")
    for colour in ("red", "blue", "green", "purple")
    for shape in ("star", "square")
)
_EXPRESSIONS: Final = 8


@dataclass(frozen=True, slots=True)
class Way:
    """Passes of one way to ask: seconds of each, and seconds of processors in them."""

    name: str
    masks: int
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Masks a second of the median pass."""
        return self.masks / float(np.median(self.seconds))

    @property
    def cores(self) -> float:
        """Processors that were busy, of the median pass."""
        return float(np.median(np.divide(self.cpu_seconds, self.seconds)))


@dataclass(frozen=True, slots=True)
class BatcherRecord:
    """A run of `cris-bench batcher`; the first way is what the others are compared with."""

    machine: Machine
    bundle: str
    choice: str
    streams: int
    ways: tuple[Way, ...]
    command: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure. Exit 0, or 2 for unusable input."""
    return run_command(_parser(), argv, measure, describe_run)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-bench batcher",
        description="Ask one engine for masks from one thread and from many, with and without a "
        "batcher, in turns: pictures that are never the same, and several expressions of each.",
        examples=(
            "cris-bench batcher demo/scenes.bundle",
            "cris-bench batcher demo/scenes.bundle --backend onnxruntime --threads 16",
        ),
    )
    add_common(parser)
    add = parser.add_argument
    add("--backend", default=AUTO, choices=[AUTO, *BackendName])
    add("--streams", type=int, default=1, metavar="N", help="of the engine (1)")
    add("--threads", type=int, default=16, metavar="N", help="that ask (16)")
    add("--pictures", type=int, default=96, metavar="N", help="of a pass (96)")
    add("--rounds", type=int, default=6, metavar="N", help="turns of all ways (6)")
    return parser


def measure(args: argparse.Namespace, command: tuple[str, ...]) -> BatcherRecord:
    """Run all ways in turns."""
    for name in ("threads", "pictures", "rounds"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}: give 1 or more")
    with Engine(args.bundle, backend=args.backend, streams=args.streams) as engine:
        engine.warm_up((1, 4, 8), (1, _EXPRESSIONS))
        ways = _ways(engine, args.threads, args.pictures)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        rng = np.random.default_rng(0)
        for _ in range(args.rounds):
            for name, (pictures, work) in ways.items():
                images = list(rng.integers(0, 256, (pictures, *_SIZE), np.uint8))
                began, cpu = time.perf_counter(), time.process_time()
                work(images)
                ended = time.perf_counter() - began, time.process_time() - cpu
                times[name].append(ended)
        choice = f"{engine.info.backend} on {engine.info.device} in {engine.info.compute}"
    found = tuple(
        Way(name, _masks(name, ways[name][0]), *map(tuple, zip(*each, strict=True)))
        for name, each in times.items()
    )
    return BatcherRecord(describe(), args.bundle.name, choice, args.streams, found, command)


def _masks(name: str, pictures: int) -> int:
    return pictures * (_EXPRESSIONS if name.startswith(str(_EXPRESSIONS)) else 1)


def _ways(
    engine: Engine, threads: int, pictures: int
) -> dict[str, tuple[int, Callable[[list[Pixels]], object]]]:
    """Name -> pictures of a pass, and what is done with them."""

    def one(images: list[Pixels]) -> None:
        for number, image in enumerate(images):
            engine.segment(image, _WORDS[number % len(_WORDS)])

    def many(images: list[Pixels]) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(engine.segment, images, _words(len(images))))

    def merged(limits: BatchLimits) -> Callable[[list[Pixels]], None]:
        def work(images: list[Pixels]) -> None:
            with Batcher(engine, limits) as batcher, ThreadPoolExecutor(threads) as pool:
                list(pool.map(partial(_ask, batcher), images, _words(len(images))))

        return work

    def eight(images: list[Pixels]) -> None:
        for image in images:
            for words in _WORDS[:_EXPRESSIONS]:
                engine.segment(image, words)

    def eight_merged(images: list[Pixels]) -> None:
        limits = BatchLimits(1, _EXPRESSIONS)
        with Batcher(engine, limits) as batcher, ThreadPoolExecutor(_EXPRESSIONS) as pool:
            for image in images:
                list(pool.map(partial(_ask, batcher, image), _WORDS[:_EXPRESSIONS]))

    few = max(1, pictures // _EXPRESSIONS)
    return {
        "one thread": (pictures, one),
        f"{threads} threads": (pictures, many),
        f"{threads} threads, batcher of 1 image": (pictures, merged(BatchLimits(1, 16))),
        f"{threads} threads, batcher of 4": (pictures, merged(BatchLimits(4, 16))),
        f"{threads} threads, batcher of 8": (pictures, merged(BatchLimits(8, 16))),
        f"{_EXPRESSIONS} expressions of a picture, one thread": (few, eight),
        f"{_EXPRESSIONS} expressions, as many threads, batcher": (few, eight_merged),
    }


def _ask(batcher: Batcher, image: Pixels, words: str) -> object:
    return batcher.submit(image, words).result()


def _words(count: int) -> list[str]:
    return [_WORDS[number % len(_WORDS)] for number in range(count)]


def describe_run(record: BatcherRecord) -> str:
    """Give the figures as text."""
    base = record.ways[0]
    rows = []
    for way in record.ways:
        # Seconds a mask, round by round, against one thread that asks for one after the other.
        ratios = np.divide(base.seconds, base.masks) / np.divide(way.seconds, way.masks)
        rows.append(
            (
                way.name,
                f"{way.rate:.1f}",
                f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})",
                f"{way.cores:.2f}",
            )
        )
    columns = ("", "masks/s", "x", "cores busy")
    return f"{record.bundle}: {record.choice}, {record.streams} stream(s)\n\n" + tables.to_text(
        columns, rows
    )


if __name__ == "__main__":
    sys.exit(main())
