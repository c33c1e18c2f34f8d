"""Going on: exactly where a run was, or not at all and with a reason."""

import errno
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cris_deploy.documents import plain
from cris_deploy.errors import CrisError, InputError
from cris_deploy.execution.backends import Compute
from cris_train import checkpoint
from cris_train.errors import CheckpointError, TrainingError
from cris_train.model import Cris, CrisConfig
from cris_train.run import state
from cris_train.run.learner import Learner
from cris_train.run.loop import TrainResult, train
from cris_train.run.recipe import Schedule, TrainConfig
from cris_train.synthetic.refer_files import write_scenes
from tests.helpers.training import content, losses, rows, same, tiny_recipe

# Dropout, an average and six steps of two images in epochs of three.
SHAPE = CrisConfig.tiny(dropout=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, {"train": 6, "val": 2}, seed=1)
    return out


def recipe(folder: Path, output: Path, **changes: Any) -> TrainConfig:
    settings = {"model": SHAPE, "images_per_batch": 2, "epochs": 2, "val_images": 2, "ema": 0.9}
    settings |= {"expressions_per_image": 2, "validate_every": 8, "log_every": 1, "save_every": 1}
    return tiny_recipe(folder, output, **{**settings, **changes})


def quiet(config: TrainConfig, resume: bool = False) -> TrainResult:
    return train(config, lambda _: None, resume=resume)


class Stopped(BaseException):
    """What a killed process does not handle."""


@contextmanager
def stopping_at(step: int) -> Iterator[None]:
    def step_or_stop(self: Learner, batch: Any, number: int) -> Any:
        if number == step:
            raise Stopped
        return STEP(self, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", step_or_stop)
        with pytest.raises(Stopped):
            yield


STEP = Learner.step


@pytest.fixture(scope="module")
def stopped(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after four of its six steps; not to be changed."""
    output = tmp_path_factory.mktemp("stopped")
    with stopping_at(4):
        quiet(recipe(folder, output))
    return output


@pytest.fixture
def own(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "own"))


@pytest.mark.parametrize("precision", [Compute.FP32, Compute.FP16])
@pytest.mark.parametrize("save_every", [1, 3])
def test_goes_on_to_the_bit(
    folder: Path, tmp_path: Path, precision: Compute, save_every: int
) -> None:
    changes = {"precision": precision, "save_every": save_every}
    whole = quiet(recipe(folder, tmp_path / "whole", **changes))
    with stopping_at(1):  # before anything was saved, or just after
        quiet(recipe(folder, tmp_path / "parts", **changes))
    with stopping_at(4):
        quiet(recipe(folder, tmp_path / "parts", **changes), resume=True)
    parts = quiet(recipe(folder, tmp_path / "parts", **changes), resume=True)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert same(content(parts.last), content(whole.last))
    assert same(content(parts.best), content(whole.best))
    assert parts.final == whole.final
    assert parts.mean_iou == whole.mean_iou


def test_a_finished_run_has_nothing_left(folder: Path, tmp_path: Path) -> None:
    config = recipe(folder, tmp_path)
    first = quiet(config)
    before = rows(tmp_path)
    again = quiet(config, resume=True)
    assert again.final == first.final
    assert rows(tmp_path) == before


def test_resume_without_a_run_starts_one_and_says_so(folder: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    train(recipe(folder, tmp_path, epochs=1), lines.append, resume=True)
    assert any("nothing in" in line and "starting" in line for line in lines)


def test_a_run_is_not_overwritten(folder: Path, own: Path) -> None:
    with pytest.raises(InputError, match="holds a run already: go on with --resume"):
        quiet(recipe(folder, own))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e-3}, "learning_rate was 0.003, is 0.001"),
        ({"seed": 1, "ema": 0.0}, "seed was 0, is 1; ema was 0.9, is 0.0"),
        ({"epochs": 1}, "4 steps are done, and with epochs=1 the run has 3: set epochs to what"),
        (
            {"model": CrisConfig.tiny(dropout=0.1, decoder_layers=2)},
            "model.decoder_layers was 1, is 2",
        ),
    ],
)
def test_another_recipe_is_named(
    folder: Path, own: Path, changes: dict[str, Any], message: str
) -> None:
    before = (own / "last.pth").read_bytes()
    with pytest.raises(CheckpointError, match=message):
        quiet(recipe(folder, own, **changes), resume=True)
    assert (own / "last.pth").read_bytes() == before


def test_what_does_not_change_numbers_may_change(folder: Path, own: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(own, tmp_path / "moved"))
    may: dict[str, Any] = {"validate_every": 4, "skip_broken": True}
    quiet(recipe(folder, moved, recompute=True, save_every=7, cache=False, **may), resume=True)
    quiet(recipe(folder, own), resume=True)
    left, right = content(own / "last.pth"), content(moved / "last.pth")
    assert same(left["state_dict"], right["state_dict"])


def test_another_data_set_is_named(own: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_scenes(other, {"train": 8, "val": 2}, seed=1)
    with pytest.raises(CheckpointError, match=r"an epoch had \[3\] steps, has \[4\]"):
        quiet(recipe(other, own), resume=True)


def changed_recipe(output: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """As another version would have stored it."""
    raw = torch.load(output / "last.pth", weights_only=True)
    change(raw["training"]["recipe"])
    torch.save(raw, output / "last.pth")


# Of version 0.1.0's record of a run; what is not here was added since.
FIRST_SETTINGS = [
    "model",
    "clip",
    "init",
    "data",
    "images",
    "split_by",
    "train_split",
    "val_split",
    "skip_broken",
    "output",
    "seed",
    "draw",
    "target",
    "images_per_batch",
    "expressions_per_image",
    "workers",
    "cache",
    "learning_rate",
    "backbone_factor",
    "weight_decay",
    "schedule",
    "decay_epochs",
    "decay_factor",
    "final_factor",
    "warmup_steps",
    "clip_norm",
    "epochs",
    "lessons",
    "device",
    "precision",
    "accumulate",
    "recompute",
    "sync_batch_norm",
    "compile",
    "deterministic",
    "ema",
    "validate_every",
    "val_images",
    "threshold",
    "sheet_tiles",
    "save_every",
    "log_every",
    "tensorboard",
]


def test_a_run_of_an_earlier_version_goes_on(folder: Path, own: Path, tmp_path: Path) -> None:
    def as_before(stored: dict[str, Any]) -> None:
        for name in [*stored]:
            if name not in FIRST_SETTINGS:
                del stored[name]
        del stored["model"]["word_len"]  # the model's shape may get settings, too

    changed_recipe(own, as_before)
    raw = torch.load(own / "last.pth", weights_only=True)
    for name in ("skipped", "owed"):
        del raw["training"]["progress"][name]
    raw["training"]["progress"]["of_tomorrow"] = 1
    torch.save(raw, own / "last.pth")
    quiet(recipe(folder, own), resume=True)
    whole = quiet(recipe(folder, tmp_path / "whole"))
    assert same(content(own / "last.pth")["state_dict"], content(whole.last)["state_dict"])
    # A setting that was added since is compared as what it means: as before.
    assert plain(TrainConfig())["full_rate_epochs"] == 0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("of_tomorrow", 3, "of another version: its recipe: of_tomorrow is not known"),
        ("schedule", "spiral", 'of another version: its recipe: schedule is "spiral", expected st'),
    ],
)
def test_a_run_of_a_later_version_is_told(
    folder: Path, own: Path, key: str, value: Any, message: str
) -> None:
    changed_recipe(own, lambda stored: stored.__setitem__(key, value))
    with pytest.raises(CheckpointError, match=message) as error:
        quiet(recipe(folder, own), resume=True)
    assert "go on with the version that wrote it, or keep its weights with init=" in str(
        error.value
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("schedule", [Schedule.STEP, Schedule.COSINE])
def test_a_run_can_be_made_longer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: Schedule
) -> None:
    changes: dict[str, Any] = {"schedule": schedule, "decay_epochs": (1,)}
    rates: list[float] = []

    def step(self: Learner, batch: Any, number: int) -> Any:
        rates.append(self.optimizer.param_groups[-1]["lr"])
        return STEP(self, batch, number)

    monkeypatch.setattr(Learner, "step", step)
    quiet(recipe(folder, tmp_path, epochs=1, **changes))
    quiet(recipe(folder, tmp_path, epochs=2, **changes), resume=True)
    assert [int(row["step"]) for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    quiet(recipe(folder, tmp_path / "whole", epochs=2, **changes))
    # The steps that were left have the rates of the longer run.
    parts, whole = rates[:6], rates[6:]
    assert parts[3:] == whole[3:]
    assert (parts[:3] == whole[:3]) is (schedule is Schedule.STEP)
    if schedule is Schedule.STEP:  # which does not look ahead
        assert losses(tmp_path) == losses(tmp_path / "whole")


def test_weights_alone_are_no_run(folder: Path, own: Path) -> None:
    shutil.copy(own / "best.pth", own / "last.pth")
    with pytest.raises(CheckpointError, match="start from them with init="):
        quiet(recipe(folder, own), resume=True)


def test_state_of_another_shape_is_refused(folder: Path, own: Path) -> None:
    """Somebody edited the file: recipe and configuration still say the old shape."""
    raw = torch.load(own / "last.pth", weights_only=True)
    raw["state_dict"]["module.proj.txt.bias"] = torch.zeros(3)
    torch.save(raw, own / "last.pth")
    with pytest.raises(CheckpointError, match="does not fit this run"):
        quiet(recipe(folder, own), resume=True)


def test_log_that_lost_lines_is_refused(folder: Path, own: Path) -> None:
    text = (own / "log.csv").read_text()
    (own / "log.csv").write_text(text[: len(text) // 2])
    with pytest.raises(TrainingError, match=r"log\.csv has \d+ bytes and had \d+"):
        quiet(recipe(folder, own), resume=True)


def test_halves_of_a_killed_write_are_swept(folder: Path, own: Path) -> None:
    (own / ".last.pth.abc.partial").write_bytes(b"half")
    quiet(recipe(folder, own), resume=True)
    assert not list(own.glob(".*"))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to write more into a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_keeps_the_checkpoint_before(folder: Path, own: Path) -> None:
    before = (own / "last.pth").read_bytes()
    with (
        files_of_at_most(1_000_000),
        pytest.raises(
            TrainingError, match=r"last\.pth cannot be written: .*the one before is kept"
        ),
    ):
        quiet(recipe(folder, own), resume=True)
    assert (own / "last.pth").read_bytes() == before
    assert not list(own.glob(".*"))
    quiet(recipe(folder, own), resume=True)


def test_full_disk_at_the_last_moment(
    folder: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems tell at fsync."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (own / "last.pth").read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CrisError, match="No space left on device"):
        quiet(recipe(folder, own), resume=True)
    assert (own / "last.pth").read_bytes() == before


def test_trained_file_has_the_references_layout(folder: Path, own: Path) -> None:
    raw = torch.load(own / "last.pth", weights_only=True)
    layout = {"epoch", "cur_iou", "best_iou", "prec", "state_dict", "optimizer", "scheduler"}
    assert layout <= raw.keys()
    plain = Cris(SHAPE)
    assert raw["state_dict"].keys() == {f"module.{name}" for name in plain.state_dict()}
    weights = {name.removeprefix("module."): v for name, v in raw["state_dict"].items()}
    plain.load_state_dict(weights, strict=True)
    # And back: a file of the reference, which says nothing of shapes, starts a run.
    del raw["config"], raw["training"]
    torch.save(raw, own / "reference.pth")
    config = recipe(folder, own / "on", init=str(own / "reference.pth"), epochs=1)
    result = quiet(config)
    assert checkpoint.load(result.best).config == SHAPE


def test_progress_survives_plain_values() -> None:
    from dataclasses import asdict

    progress = state.Progress(step=3, precision={"Pr@50": 0.5}, loss_sum=0.1, loss_count=2)
    assert same(asdict(state.Progress(**asdict(progress))), asdict(progress))
