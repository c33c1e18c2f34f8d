"""Files that change while they are read: what was there at some moment, or an error of ours."""

import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BundleError, CrisError, ImageError
from tests.hard.faults.answers import digest
from tests.helpers import tiny_bundle as tiny

ROUNDS = 40
TICK = 0.03
"""Longer than a tick of a file system's clock, seconds: two writes in one tick look like one."""
WEIGHTS = "project"


@contextmanager
def meanwhile(change: Callable[[int], None]) -> Iterator[None]:
    """Call `change` with 0, 1, 2, ... in another thread, for as long as the block lasts."""
    enough, failed = threading.Event(), []

    def loop() -> None:
        for number in itertools.count():
            if enough.is_set():
                return
            try:
                change(number)
            except BaseException as error:
                failed.append(error)
                return

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
    assert not failed, failed


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path) -> Iterator[Engine]:
    with Engine(tiny_bundle, backend="onnxruntime", threads=1) as opened:
        yield opened


def test_a_picture_that_is_written_over(engine: Engine, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (4, 5, 3), np.uint8) for _ in range(2)]
    files, golden = [], []
    for pixels in coarse:
        done, data = cv2.imencode(".png", cv2.resize(pixels, (300, 200)))
        assert done
        files.append(data.tobytes())
        golden.append(engine.segment(data.tobytes(), "a").mask)
    assert not np.array_equal(*golden)
    path = tmp_path / "changing.png"
    path.write_bytes(files[0])

    def change(number: int) -> None:
        data = files[number % 2]
        with path.open("wb") as file:  # cut to nothing, then in two halves
            file.write(data[: len(data) // 2])
            file.flush()
            file.write(data[len(data) // 2 :])

    outcomes = {"right": 0, "told": 0}
    with meanwhile(change):
        for _ in range(5 * ROUNDS):
            try:
                mask = engine.segment(path, "a").mask
            except ImageError:
                outcomes["told"] += 1
                continue
            # Half of a file and half of another is no picture: PNG has a sum over its data.
            assert any(np.array_equal(mask, expected) for expected in golden)
            outcomes["right"] += 1
    assert sum(outcomes.values()) == 5 * ROUNDS
    assert np.array_equal(engine.segment(files[0], "a").mask, golden[0])


@pytest.fixture
def two_bundles(tmp_path: Path) -> tuple[Path, Path]:
    """Two that differ in a weight, and so in their masks."""
    first = tiny.write_bundle(tmp_path / "first")
    second = Path(shutil.copytree(first, tmp_path / "second"))
    tiny.change_weights(second, WEIGHTS, lambda value: -value)
    return first, second


def answer(bundle: Path) -> str:
    with Engine(Bundle.open(bundle), backend="onnxruntime", threads=1) as engine:
        return digest(engine)


def test_a_bundle_that_is_replaced_while_it_is_opened(
    two_bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    """By renaming, as an export does: each engine is wholly of one, or says that it changed."""
    golden = {answer(bundle) for bundle in two_bundles}
    assert len(golden) == 2
    place, spare = tmp_path / "b", tmp_path / "spare"
    shutil.copytree(two_bundles[0], place)
    shutil.copytree(two_bundles[1], spare)
    other = tmp_path / "other"

    def change(_: int) -> None:
        place.rename(other)
        spare.rename(place)
        other.rename(spare)

    check_opening(place, golden, change)


def test_weights_that_are_written_over_while_they_are_opened(
    two_bundles: tuple[Path, Path], tmp_path: Path
) -> None:
    golden = answer(two_bundles[0])
    place = Path(shutil.copytree(two_bundles[0], tmp_path / "b"))
    contents = [(bundle / "weights.bin").read_bytes() for bundle in two_bundles]

    def change(number: int) -> None:
        with (place / "weights.bin").open("r+b") as file:
            file.write(contents[number % 2])
        os.utime(place / "weights.bin")
        time.sleep(TICK)

    check_opening(place, {golden}, change)


def check_opening(place: Path, golden: set[str], change: Callable[[int], None]) -> None:
    outcomes = {"right": 0, "told": 0}
    with meanwhile(change):
        for _ in range(ROUNDS):
            try:
                assert answer(place) in golden
                outcomes["right"] += 1
            except BundleError:
                outcomes["told"] += 1
            except CrisError as error:
                if "copy or export the bundle again" not in str(error):
                    raise
                outcomes["told"] += 1  # by a runtime that met the change
    assert sum(outcomes.values()) == ROUNDS
