"""Two processes on a CPU, started by torchrun, are one process with the same global batch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cris_train.run.learner import Learner
from cris_train.run.loop import train
from cris_train.run.recipe import TrainConfig
from cris_train.synthetic.refer_files import write_scenes
from tests.helpers import in_double
from tests.helpers.training import content, losses, rows, tiny_recipe, write_recipe

ROUNDING = 3e-5  # of a loss in float32; what it is to tell apart differs by 1e-2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, {"train": 4, "val": 2}, seed=1)
    return out


def recipe(folder: Path, output: Path, **changes: Any) -> TrainConfig:
    """Dropout is 0: two processes draw from streams of their own."""
    settings = {"epochs": 4, "val_split": "val", "learning_rate": 1e-5, "save_every": 2}
    settings |= {"ema": 0.5, "recompute": True}
    return tiny_recipe(folder, output, **{**settings, **changes})


def torchrun(config: TrainConfig, folder: Path, *program: str, processes: int = 2) -> str:
    """Start the console (or another program) as a user would; returns what it printed."""
    file = write_recipe(config, folder / "recipe.yaml")
    arguments = ["--nproc-per-node", str(processes), "--standalone"]
    arguments += [*(program or ("-m", "cris_train")), "--config", str(file), "--resume"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    train(recipe(folder, output), lambda _: None)
    return output


@pytest.fixture(scope="module")
def untrained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they all start: a learning rate so small that it changes nothing."""
    output = tmp_path_factory.mktemp("untrained")
    train(recipe(folder, output, epochs=1, learning_rate=1e-30), lambda _: None)
    return output


def parameters(output: Path) -> torch.Tensor:
    """All weights and running statistics in a row."""
    state = content(output / "last.pth")["state_dict"]
    return torch.cat([v.flatten().double() for v in state.values() if v.is_floating_point()])


def apart(one: Path, other: Path, start: Path) -> float:
    """Distance of two models, as a share of the way that training took them."""
    begun = parameters(start)
    way = (parameters(one) - begun).norm()
    return float((parameters(one) - parameters(other)).norm() / way)


def test_two_processes_give_the_model_of_one(
    folder: Path, tmp_path: Path, alone: Path, untrained: Path
) -> None:
    said = torchrun(recipe(folder, tmp_path / "two"), tmp_path)
    assert "2 processes" in said
    assert said.count("best mIoU") == 1  # one of them talks
    # The same numbers are summed in another order: float32's 6e-8 a sum, and how many sums depends
    # on the threads and the instructions of the machine (3e-6 at most when written). The first loss
    # shows no more than that. Then Adam divides every gradient by its size, and small ones are
    # mostly rounding: at this learning rate 3e-5 of the way.
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(alone)[0], rel=ROUNDING)
    assert losses(tmp_path / "two") == pytest.approx(losses(alone), rel=2e-3)
    assert apart(alone, tmp_path / "two", untrained) < 1e-3
    ours, theirs = rows(tmp_path / "two")[-1], rows(alone)[-1]
    assert float(ours["mean_iou"]) == pytest.approx(float(theirs["mean_iou"]), abs=0.01)
    assert [row["step"] for row in rows(tmp_path / "two")] == ["1", "2", "3", "4"]


def test_in_float64_they_are_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps by one process and two more by two, against all four by one."""
    changes = {"learning_rate": 1e-3}
    step = Learner.step

    class Stopped(BaseException):
        pass

    def step_or_stop(self: Learner, batch: Any, number: int) -> Any:
        if number == 2 and self.config.output == str(tmp_path / "two"):
            raise Stopped
        return step(self, batch, number)

    in_double.patch(monkeypatch)
    monkeypatch.setattr(Learner, "step", step_or_stop)
    torch.set_default_dtype(torch.float64)
    try:
        train(recipe(folder, tmp_path / "one", **changes), lambda _: None)
        with pytest.raises(Stopped):
            train(recipe(folder, tmp_path / "two", **changes), lambda _: None)
    finally:
        torch.set_default_dtype(torch.float32)
    half = parameters(tmp_path / "two")
    torchrun(recipe(folder, tmp_path / "two", **changes), tmp_path, "-m", "tests.helpers.in_double")
    one, two = parameters(tmp_path / "one"), parameters(tmp_path / "two")
    assert one.dtype == torch.float64
    # float64's 1e-16, some hundred sums deep, and made more of by Adam as in float32: 4e-13 of the
    # way when written, at a hundred times the learning rate.
    assert float((two - one).norm() / (one - half).norm()) < 1e-9
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-8)


def test_without_synchronised_batch_norm_they_differ(
    folder: Path, tmp_path: Path, alone: Path, untrained: Path
) -> None:
    torchrun(recipe(folder, tmp_path / "two", sync_batch_norm=False), tmp_path)
    # Each process normalises its two images by themselves: at once another loss, and in the end
    # twenty times the distance that is allowed above (0.045 when written).
    assert losses(tmp_path / "two")[0] != pytest.approx(losses(alone)[0], rel=1e-2)
    assert apart(alone, tmp_path / "two", untrained) > 0.02


def test_parts_of_a_step_in_two_processes(folder: Path, tmp_path: Path) -> None:
    """One image at a time, in four parts of one process or in two parts of two.

    Without synchronised batch norm both normalise single images; gradients are exchanged once.
    """
    changes = {"sync_batch_norm": False, "epochs": 2, "val_images": 1}
    train(recipe(folder, tmp_path / "one", accumulate=4, **changes), lambda _: None)
    torchrun(recipe(folder, tmp_path / "two", accumulate=2, **changes), tmp_path)
    # As above; the second loss shows that the first step was the same.
    assert losses(tmp_path / "two")[0] == pytest.approx(losses(tmp_path / "one")[0], rel=ROUNDING)
    assert losses(tmp_path / "two")[1] == pytest.approx(losses(tmp_path / "one")[1], rel=2e-3)
    assert losses(tmp_path / "two")[1] != pytest.approx(losses(tmp_path / "one")[0], rel=0.02)
