"""`cris-bench video`: frames a second of a bundle, and what keeping masks of still frames costs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from cris_bench.record.machine import Machine, describe
from cris_bench.scopes.command import add_common, run_command
from cris_deploy.cli import Parser, tables
from cris_deploy.cli.video import Frame, read_frames, segment_frames
from cris_deploy.engine import Engine
from cris_deploy.errors import InputError
from cris_deploy.pixels.image import Pixels
from cris_deploy.pixels.mask import overlap

_SIZE: Final = (640, 480)
_PHASE: Final = 25
"""Frames in which nothing moves, then as many in which one object does."""
_NOISE: Final = 1.5
"""Standard deviation of a sensor's noise, levels of 255."""


@dataclass(frozen=True, slots=True)
class Way:
    """Passes over the video, `seconds` each: how many frames kept their masks, how near they are.

    `mean_iou` and `worst_iou` compare with the masks of a pass that computes every frame.
    """

    reuse: float | None
    seconds: tuple[float, ...]
    frames: int
    reused: int
    mean_iou: float
    worst_iou: float

    @property
    def rate(self) -> float:
        """Frames a second of the median pass, without decoding, drawing and writing."""
        return self.frames / float(np.median(self.seconds))


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """A run of `cris-bench video`."""

    machine: Machine
    bundle: str
    choice: str
    video: str
    ways: tuple[Way, ...]
    command: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure. Exit 0, or 2 for unusable input."""
    return run_command(_parser(), argv, measure, describe_run)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-bench video",
        description="Segment a video's frames, all of them and again with masks kept where nothing "
        "changed, in turns.",
        examples=(
            "cris-bench video demo/scenes.bundle --reuse 12,16",
            "cris-bench video r50.bundle --video street.mp4 --expression 'the red car'",
        ),
    )
    add_common(parser)
    add = parser.add_argument
    add("--video", type=Path, metavar="FILE", help="(generated: 640 x 480, half of it still)")
    add("--expression", default="the red star", metavar="WORDS", help="(the red star)")
    add("--frames", type=int, default=100, metavar="N", help="(100)")
    add("--reuse", default="12", metavar="LEVELS", help="of cris-segment, with commas (12)")
    add("--rounds", type=int, default=3, metavar="N", help="turns of all ways (3)")
    return parser


def measure(args: argparse.Namespace, command: tuple[str, ...]) -> VideoRecord:
    """Run all ways in turns."""
    try:
        levels = [float(text) for text in args.reuse.split(",")]
    except ValueError:
        raise InputError(f"--reuse {args.reuse}: give levels with commas, such as 8,16") from None
    for name in ("frames", "rounds"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}: give 1 or more")
    if args.video is None:
        frames = list(_generated(args.frames))
    else:
        frames = list(read_frames(args.video, args.frames))
    ways: dict[float | None, list[float]] = {level: [] for level in (None, *levels)}
    found: dict[float | None, list[Frame]] = {}
    with Engine(args.bundle, image_cache=0) as engine:
        engine.warm_up()
        for _ in range(args.rounds):
            for level, seconds in ways.items():
                began = time.perf_counter()
                passes = segment_frames(engine, iter(frames), [args.expression], reuse=level)
                found[level] = [frame for _, frame in passes]
                seconds.append(time.perf_counter() - began)
        choice = f"{engine.info.backend} on {engine.info.device} in {engine.info.compute}"
    summaries = tuple(
        _way(level, tuple(seconds), found[level], found[None]) for level, seconds in ways.items()
    )
    video = "generated" if args.video is None else args.video.name
    return VideoRecord(describe(), args.bundle.name, choice, video, summaries, command)


def _way(
    level: float | None, seconds: tuple[float, ...], found: list[Frame], exact: list[Frame]
) -> Way:
    ious = [
        overlap(one.results[0].mask, other.results[0].mask).iou
        for one, other in zip(found, exact, strict=True)
    ]
    reused = sum(frame.reused for frame in found)
    return Way(level, seconds, len(found), reused, float(np.mean(ious)), min(ious))


def describe_run(record: VideoRecord) -> str:
    """Give the figures as text."""
    times = np.array([way.seconds for way in record.ways])
    ratios = times[0] / times  # round by round, against every frame computed
    rows = [
        (
            "every frame" if way.reuse is None else f"--reuse {way.reuse:g}",
            f"{way.rate:.1f}",
            f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})",
            f"{way.reused} of {way.frames}",
            f"{way.mean_iou:.4f}",
            f"{way.worst_iou:.4f}",
        )
        for way, ratio in zip(record.ways, ratios, strict=True)
    ]
    columns = ("", "frames/s", "x", "kept", "mean IoU", "worst IoU")
    return f"{record.bundle}: {record.choice}, {record.video}\n\n" + tables.to_text(columns, rows)


def _generated(count: int) -> Iterator[Pixels]:
    """A scene seen by a noisy camera: still for a while, then one object moves, and so on."""
    from cris_train.synthetic.render import render
    from cris_train.synthetic.scenes import draw_scene, scene_rng

    scene = draw_scene(scene_rng(0, "video", 0), width=_SIZE[0], height=_SIZE[1])
    noise = np.random.default_rng(0)
    first, *rest = scene.objects
    shift = 0.0
    for number in range(count):
        moving = number // _PHASE % 2
        shift += 2.0 * moving
        moved = dataclasses.replace(first, x=min(first.x + shift, _SIZE[0] - first.diameter))
        image = render(dataclasses.replace(scene, objects=(moved, *rest))).image
        seen = image + noise.normal(0, _NOISE, image.shape)
        yield np.clip(np.rint(seen), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())
