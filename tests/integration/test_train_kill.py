"""kill -9 at three moments, --resume each time: the curve of a run that nobody disturbed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cris_train.model import CrisConfig
from cris_train.run.loop import train
from cris_train.run.recipe import TrainConfig
from cris_train.synthetic.refer_files import write_scenes
from tests.helpers.training import content, rows, same, tiny_recipe, write_recipe

HANGS = 300  # seconds; nothing here takes as long
# Runs the console, and kills its own process like `kill -9` between the n-th checkpoint's last byte
# and its renaming, or in the middle of its bytes.
DRIVER = """
import os, pathlib, signal, sys
import torch
from cris_train.cli.train import main

moment, count, *argv = sys.argv[1:]
left = int(count)

def dying(function):
    def wrapped(*args, **named):
        global left
        left -= 1
        if left == 0:
            if moment == "written":
                function(*args, **named)
            else:
                args[1].write(b"half a checkpoint" * 1000)
                args[1].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **named)
    return wrapped

torch.save = dying(torch.save)
sys.exit(main(argv))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, {"train": 6, "val": 2}, seed=1)
    return out


def start(arguments: list[str], threads: int) -> subprocess.Popen[bytes]:
    # As many threads as the undisturbed run has: sums in another order are other sums.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen([sys.executable, *arguments], env=environment)


def scalars(output: Path) -> dict[str, list[tuple[int, float]]]:
    """As TensorBoard shows them."""
    found = EventAccumulator(str(output / "events")).Reload()
    names = [name for name in found.Tags()["scalars"] if "per_second" not in name]
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in names}


def test_killed_three_times(folder: Path, tmp_path: Path) -> None:
    def recipe(output: str) -> TrainConfig:
        return tiny_recipe(
            folder,
            tmp_path / output,
            model=CrisConfig.tiny(dropout=0.1),
            images_per_batch=2,
            expressions_per_image=2,
            epochs=14,
            val_images=2,
            validate_every=40,  # ten steps
            save_every=3,
            tensorboard=True,
            ema=0.9,
        )

    train(recipe("whole"), lambda _: None)
    output, threads = tmp_path / "parts", torch.get_num_threads()
    arguments = ["--config", str(write_recipe(recipe("parts"), tmp_path / "r.yaml")), "--resume"]

    # In the middle of the bytes of the third last.pth, after step 9.
    first = start(["-c", DRIVER, "halfway", "3", *arguments], threads)
    assert first.wait(timeout=HANGS) == -signal.SIGKILL
    assert steps_saved(output) == 6
    assert len(rows(output)) == 9  # three lines further than the checkpoint
    assert list(output.glob(".last.pth.*.partial"))

    # Goes on from step 6 and saves after 9, twice at the validation of step 10 (best, last), 12, 15
    # and 18; then best.pth of step 20 is there, or not if it is no better, and the next last.pth is
    # complete, but not in its place.
    second = start(["-c", DRIVER, "written", "7", *arguments], threads)
    assert second.wait(timeout=HANGS) == -signal.SIGKILL
    assert 12 <= steps_saved(output) <= 20

    # From outside, whenever it happens to be past step 30.
    third = start(["-m", "cris_train", *arguments], threads)
    deadline = time.monotonic() + HANGS
    while len(rows(output)) < 31 and time.monotonic() < deadline and third.poll() is None:
        time.sleep(0.005)
    third.kill()
    assert third.wait(timeout=HANGS) == -signal.SIGKILL
    assert steps_saved(output) >= 27

    train(recipe("parts"), lambda _: None, resume=True)
    assert rows(output) == rows(tmp_path / "whole")
    assert scalars(output) == scalars(tmp_path / "whole")
    for name in ("last.pth", "best.pth"):
        assert same(content(output / name), content(tmp_path / "whole" / name)), name
    assert not list(output.glob(".*"))


def steps_saved(output: Path) -> int:
    step: int = content(output / "last.pth")["training"]["progress"]["step"]
    return step
