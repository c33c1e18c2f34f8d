"""cris-segment on a video file or a camera: masks on every frame, and what was not computed.

Frames that did not change may keep the last frame's masks. They are compared block by block: a
small thing that moves hardly moves the mean of a picture.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from cris_deploy.engine import Engine
from cris_deploy.errors import ImageError, InputError
from cris_deploy.pixels.image import Pixels
from cris_deploy.results import overlay
from cris_deploy.results.segmentation import Segmentation

SUFFIXES: Final = frozenset({".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"})
CAMERA: Final = "camera:"
_BLOCK: Final = 16
"""Side of the blocks that are compared, pixels."""
_CODEC: Final = "mp4v"
_DEFAULT_RATE: Final = 25.0


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's number from 0, its masks, and whether they are the last computed frame's."""

    number: int
    results: tuple[Segmentation, ...]
    reused: bool

    def to_json(self) -> dict[str, Any]:
        """Give the frame as plain data."""
        return {
            "frame": self.number,
            "reused": self.reused,
            "results": [result.to_json() for result in self.results],
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of a video: frames, those that kept the masks of the last, and wall time."""

    output: Path
    frames: int
    reused: int
    seconds: float

    @property
    def rate(self) -> float:
        """Frames a second, with decoding, drawing and writing."""
        return self.frames / self.seconds if self.seconds else 0.0


def is_video(source: Path) -> bool:
    """Whether cris-segment takes it for a video: by its suffix, or `camera:N`."""
    return str(source).startswith(CAMERA) or source.suffix.lower() in SUFFIXES


def change(first: Pixels, second: Pixels) -> float:
    """Largest mean absolute difference of any block of two equal-sized pictures, 0 to 255."""
    difference = cv2.absdiff(first, second)
    height, width = difference.shape[:2]
    size = (max(1, width // _BLOCK), max(1, height // _BLOCK))
    return float(cv2.resize(difference, size, interpolation=cv2.INTER_AREA).max())


def segment_frames(
    engine: Engine,
    frames: Iterator[Pixels],
    expressions: Sequence[str],
    *,
    reuse: float | None = None,
    threshold: float | None = None,
) -> Iterator[tuple[Pixels, Frame]]:
    """Segment frames (H, W, 3) uint8 RGB, all of one size.

    A frame whose `change` since the last computed one is at most `reuse` keeps its masks; None
    computes all.
    """
    last: Pixels | None = None
    results: tuple[Segmentation, ...] = ()
    for number, frame in enumerate(frames):
        reused = (
            reuse is not None
            and last is not None
            and last.shape == frame.shape
            and change(last, frame) <= reuse
        )
        if not reused:
            results = tuple(engine.segment(frame, list(expressions), threshold=threshold))
            last = frame.copy()
        yield frame, Frame(number, results, reused)


def segment_video(
    engine: Engine,
    source: Path,
    expressions: Sequence[str],
    output: Path,
    *,
    threshold: float | None = None,
    reuse: float | None = None,
    most: int | None = None,
    on_frame: Any = None,
) -> Summary:
    """Draw the masks of expressions onto the frames of a video, into an MP4 file.

    Args:
        engine: With which.
        source: A file, or `camera:N`.
        expressions: What to find in every frame.
        output: The file; what stood there stays until the new one is whole.
        threshold: As in `Engine.segment`.
        reuse: As in `segment_frames`; 0 to 255.
        most: Frames to read; None for all, which with a camera is until it is interrupted.
        on_frame: Called with every `Frame`.

    Raises:
        ImageError: it is no video, or holds no frame.
        InputError: `reuse` is no level, or the output cannot be written.
    """
    if reuse is not None and not 0 <= reuse <= 255:
        raise InputError(f"reuse is {reuse}: give levels, from 0 to 255")
    output = output.with_suffix(".mp4")
    began, count, kept = time.perf_counter(), 0, 0
    with _reading(source) as (video, rate), _writing(output, rate) as write:
        try:
            for pixels, frame in segment_frames(
                engine,
                _frames(video, most),
                expressions,
                reuse=reuse,
                threshold=threshold,
            ):
                write(_drawn(pixels, frame))
                count, kept = count + 1, kept + frame.reused
                if on_frame is not None:
                    on_frame(frame)
        except KeyboardInterrupt:
            if not str(source).startswith(CAMERA):
                raise  # a camera has no other end
        if not count:
            raise ImageError(f"video {source} holds no frame that can be decoded")
    return Summary(output, count, kept, time.perf_counter() - began)


def read_frames(source: Path, most: int | None = None) -> Iterator[Pixels]:
    """Give a video's frames, (H, W, 3) uint8 RGB. Raises ImageError for what is none."""
    with _reading(source) as (video, _):
        yield from _frames(video, most)


def _drawn(pixels: Pixels, frame: Frame) -> Pixels:
    colours = [overlay.colour(index) for index in range(len(frame.results))]
    drawn = overlay.draw(pixels, [result.mask for result in frame.results], colours)
    texts = [result.expression for result in frame.results]
    return overlay.add_legend(drawn, list(zip(texts, colours, strict=True)))


def _frames(video: cv2.VideoCapture, most: int | None) -> Iterator[Pixels]:
    number = 0
    while most is None or number < most:
        done, frame = video.read()
        if not done:
            return
        number += 1
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


@contextmanager
def _reading(source: Path) -> Iterator[tuple[cv2.VideoCapture, float]]:
    name = str(source)
    if name.startswith(CAMERA):
        number = name.removeprefix(CAMERA)
        if not number.isdecimal():
            raise InputError(f"{name}: give the number of a camera, such as camera:0")
        video = cv2.VideoCapture(int(number))
    else:
        if not source.is_file():
            raise ImageError(f"video {source} does not exist: check the path")
        video = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise ImageError(f"{name} cannot be opened as a video: is it one, is it in use?")
        rate = float(video.get(cv2.CAP_PROP_FPS))
        yield video, rate if 0 < rate <= 1000 else _DEFAULT_RATE
    finally:
        video.release()


@contextmanager
def _writing(path: Path, rate: float) -> Iterator[Any]:
    """Give what writes frames (H, W, 3) uint8 RGB; the file appears when all are in it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output {path.parent} cannot be made: {error.strerror}") from None
    partial = path.with_name(f".{path.stem}.partial.mp4")
    writer: cv2.VideoWriter | None = None

    def write(frame: NDArray[np.uint8]) -> None:
        nonlocal writer
        # Encoders want even sides.
        height, width = (side - side % 2 for side in frame.shape[:2])
        if writer is None:
            code = cv2.VideoWriter.fourcc(*_CODEC)
            writer = cv2.VideoWriter(str(partial), code, rate, (width, height))
            if not writer.isOpened():
                raise InputError(f"output {path} cannot be written")
        writer.write(cv2.cvtColor(frame[:height, :width], cv2.COLOR_RGB2BGR))

    try:
        yield write
        if writer is not None:
            writer.release()
            partial.replace(path)
    finally:
        if writer is not None:
            writer.release()
        partial.unlink(missing_ok=True)
