"""Videos: every frame has its masks, frames that did not change keep them, a bad one is said."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.cli import video
from cris_deploy.errors import ImageError, InputError
from cris_deploy.pixels.image import Pixels


def square_at(x: int) -> Pixels:
    frame = np.full((64, 96, 3), 60, np.uint8)
    frame[20:40, x : x + 20] = (200, 30, 30)
    return frame


def write(path: Path, positions: Sequence[int]) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (96, 64))
    for x in positions:
        writer.write(square_at(x)[:, :, ::-1])
    writer.release()
    return path


def test_every_frame_is_segmented_and_drawn(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.mp4", [0, 10, 20, 30])
    frames: list[video.Frame] = []
    with Engine(tiny_bundle, backend="onnxruntime") as engine:
        summary = video.segment_video(
            engine, source, ["a", "b"], tmp_path / "out" / "x", on_frame=frames.append
        )
    assert summary.output == tmp_path / "out" / "x.mp4"
    assert (summary.frames, summary.reused) == (4, 0)
    assert [frame.number for frame in frames] == [0, 1, 2, 3]
    assert all(len(frame.results) == 2 for frame in frames)
    assert frames[0].results[0].mask.shape == (64, 96)
    written = cv2.VideoCapture(str(summary.output))
    assert written.get(cv2.CAP_PROP_FPS) == 10
    count = 0
    while written.read()[0]:
        count += 1
    assert count == 4
    assert [path.name for path in summary.output.parent.iterdir()] == ["x.mp4"]


def test_frames_that_did_not_change_keep_their_masks(tiny_bundle: Path) -> None:
    noise = np.random.default_rng(0)

    def noisy(x: int) -> Pixels:
        wide = square_at(x).astype(np.int16) + noise.integers(-2, 3, (64, 96, 3))
        return np.clip(wide, 0, 255).astype(np.uint8)

    positions = [0, 0, 0, 30, 30, 31, 60]
    with Engine(tiny_bundle, backend="onnxruntime") as engine:
        frames = [
            frame
            for _, frame in video.segment_frames(
                engine, (noisy(x) for x in positions), ["a"], reuse=6.0
            )
        ]
        exact = [
            frame
            for _, frame in video.segment_frames(
                engine, (square_at(x) for x in positions), ["a"], reuse=0.0
            )
        ]
    assert [frame.reused for frame in frames] == [False, True, True, False, True, False, False]
    assert frames[2].results is frames[0].results
    assert [frame.reused for frame in exact] == [False, True, True, False, True, False, False]


def test_a_small_thing_that_moves_is_a_change() -> None:
    first = np.full((416, 416, 3), 60, np.uint8)
    second = first.copy()
    second[100:110, 200:210] = 255
    assert video.change(first, first) == 0
    assert np.abs(first.astype(int) - second).mean() < 0.2
    assert video.change(first, second) > 20


def test_what_is_no_video(tiny_bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "x.mp4"
    text.write_text("no video")
    with Engine(tiny_bundle, backend="onnxruntime") as engine:
        for source, message in (
            (text, "cannot be opened as a video"),
            (tmp_path / "none.mp4", "does not exist"),
            (Path("camera:63"), "cannot be opened"),
        ):
            with pytest.raises(ImageError, match=message):
                video.segment_video(engine, source, ["a"], tmp_path / "out.mp4")
        with pytest.raises(InputError, match="such as camera:0"):
            video.segment_video(engine, Path("camera:x"), ["a"], tmp_path / "out.mp4")
        with pytest.raises(InputError, match="from 0 to 255"):
            video.segment_video(engine, text, ["a"], tmp_path / "out.mp4", reuse=300)
    assert not (tmp_path / "out.mp4").exists()


def test_an_error_half_way_leaves_what_was_there(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.mp4", [0, 10, 20])
    output = tmp_path / "out.mp4"
    output.write_bytes(b"old")

    def fail(frame: video.Frame) -> None:
        if frame.number == 1:
            raise KeyboardInterrupt

    with (
        Engine(tiny_bundle, backend="onnxruntime") as engine,
        pytest.raises(KeyboardInterrupt),
    ):
        video.segment_video(engine, source, ["a"], output, on_frame=fail)
    assert output.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
