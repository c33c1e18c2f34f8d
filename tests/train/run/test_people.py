"""What people meet: broken pictures, settings that do not go together, numbers that are none."""

import math
import os
import pickle
import shutil
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cris_deploy.errors import DataError, ImageError, InputError
from cris_deploy.execution.backends import Compute
from cris_train.data.feed import Draw
from cris_train.data.splits import open_split
from cris_train.errors import TrainingError
from cris_train.evaluation.metrics import MaskMetrics
from cris_train.model import Cris
from cris_train.model.backbone import Backbone, ImageFeatures
from cris_train.run.course import Course
from cris_train.run.distributed import Process
from cris_train.run.learner import Learner, repeat_exactly
from cris_train.run.loop import TrainResult, train
from cris_train.run.validation import Validation
from tests.helpers.training import content, losses, rows, tiny_recipe

aten = torch.ops.aten
FORWARD = Cris.forward


def run(folder: Path, output: Path, **changes: Any) -> TrainResult:
    return train(tiny_recipe(folder, output, **changes), lambda _: None)


@pytest.mark.parametrize("where", ["logits", "features"])
def test_float16_skips_a_step_whose_loss_is_not_finite(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A loss scaler's business: the step leaves nothing behind, is counted, and the run goes on."""
    before = run(folder, tmp_path / "usual", epochs=8, precision=Compute.FP16)
    usual = content(before.last)["training"]["progress"]["skipped"]  # the search for a scale
    assert usual < 6
    encode, calls = Backbone.encode_image, 0

    def overflowing(self: Backbone, image: torch.Tensor) -> ImageFeatures:
        nonlocal calls
        calls += self.training
        # Before batch norms, whose averages would remember it, or after all of them.
        image = image * math.inf if self.training and calls == 7 and where == "features" else image
        return encode(self, image)

    def failing(self: Cris, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        logits = FORWARD(self, image, tokens)
        # Where a sigmoid is flat the gradient stays finite.
        return logits + math.inf if self.training and calls == 7 and where == "logits" else logits

    monkeypatch.setattr(Backbone, "encode_image", overflowing)
    monkeypatch.setattr(Cris, "forward", failing)
    lines: list[str] = []
    config = tiny_recipe(folder, tmp_path / "bad", epochs=8, precision=Compute.FP16)
    result = train(config, lines.append)
    assert any(
        f"steps skipped so far, for float16 overflowed: {usual + 1}" in line for line in lines
    )
    found = content(result.last)
    assert found["training"]["progress"]["skipped"] == usual + 1
    assert {float(entry["step"]) for entry in found["optimizer"]["state"].values()} == {7.0 - usual}
    weights = found["state_dict"].values()
    assert all(bool(torch.isfinite(v).all()) for v in weights if v.is_floating_point())
    # All lines have a loss but the one of that step.
    assert [math.isfinite(loss) for loss in losses(tmp_path / "bad")] == [True] * 6 + [False, True]


@pytest.mark.parametrize("precision", [Compute.FP32, Compute.FP16])
def test_a_step_reads_no_number_from_the_device(
    folder: Path, tmp_path: Path, precision: Compute
) -> None:
    """Each would wait for all that is queued on a GPU; a loss is looked at a step later."""
    config = tiny_recipe(folder, tmp_path, precision=precision, epochs=3)
    process = Process(torch.device("cpu"))
    course = Course(config, open_split(folder, "train"), process)
    learner = Learner(config, course, process)
    seen = []
    for number, batch in enumerate(course.batches(0)):
        with _Reads() as reads:
            seen.append(learner.step(batch, number))
        assert reads.found == []
    assert [each is None for each in [*seen, learner.look(), learner.look()]] == [
        *(True, False, False),  # by the steps, each of the one before
        *(False, True),
    ]


class _Reads(TorchDispatchMode):
    """Finds operations that hand a value or a size that depends on values to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (aten._local_scalar_dense.default, aten.nonzero.default):
            self.found.append("".join(traceback.format_stack(limit=8)[:-1]))
        return func(*args, **(kwargs or {}))


def test_deterministic_is_so_or_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: asked.append((a, k)))
    repeat_exactly(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert asked == [((True,), {})]  # warn_only would let others pass

    def inexact(self: Cris, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("max_pool3d_backward does not have a deterministic implementation, but")

    monkeypatch.setattr(Cris, "forward", inexact)
    with pytest.raises(TrainingError, match=r"deterministic=true: max_pool3d_backward.*=false, or"):
        run(folder, tmp_path, deterministic=True)


def test_a_row_by_itself_is_refused_before_batch_norm_does(folder: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"expressions_per_image": 1, "draw": Draw.OBJECT}
    with pytest.raises(InputError, match=r"one expression at a time .*accumulate=4, 1 processes"):
        run(folder, tmp_path, accumulate=4, **own)
    with pytest.raises(InputError, match="batch norm learns from two or more: lower accumulate"):
        run(folder, tmp_path, images_per_batch=1, **own)
    run(folder, tmp_path, images_per_batch=2, epochs=1, val_images=1, **own)


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """The first of two validation pictures is none."""
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    min((data / "images").glob("*val*")).write_bytes(b"no picture")
    return data


def test_a_broken_validation_picture_is_left_out_and_counted(damaged: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    config = tiny_recipe(damaged, tmp_path / "on", val_split="val", epochs=1, skip_broken=True)
    result = train(config, lines.append)
    whole = run(damaged, tmp_path / "one", val_split="val", epochs=1, skip_broken=True)
    assert result.final == whole.final
    told = [line for line in lines if "left out so far: 1 pictures" in line]
    assert len(told) == 1
    assert "val" in told[0]
    for picture in (damaged / "images").glob("*val*"):
        picture.unlink()
    with pytest.raises(DataError, match=r"no validation picture can be used.*go on with --resume"):
        run(damaged, tmp_path / "none", val_split="val", epochs=1, skip_broken=True)


def test_a_broken_validation_picture_costs_nothing(damaged: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"val_split": "val", "epochs": 3, "validate_every": 0}
    remedy = r"val.*skip_broken=true, and go on with --resume"
    with pytest.raises(ImageError, match=remedy):
        run(damaged, tmp_path / "on", **changes)
    assert content(tmp_path / "on" / "last.pth")["training"]["progress"]["step"] == 1
    with pytest.raises(ImageError, match=remedy):  # it is met again, at once
        train(tiny_recipe(damaged, tmp_path / "on", **changes), lambda _: None, resume=True)
    skips = tiny_recipe(damaged, tmp_path / "on", skip_broken=True, **changes)
    train(skips, lambda _: None, resume=True)
    run(damaged, tmp_path / "whole", skip_broken=True, **changes)
    assert rows(tmp_path / "on") == rows(tmp_path / "whole")  # three validations each


def test_an_unreadable_training_picture_costs_nothing(folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    changes: dict[str, Any] = {"images_per_batch": 2, "epochs": 2, "cache": False, "val_images": 1}

    step = Learner.step

    def damaging(self: Learner, batch: Any, number: int) -> Any:
        if number == 2:
            for picture in (data / "images").glob("*train*"):
                picture.rename(picture.with_suffix(".away"))
        return step(self, batch, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", damaging)
        with pytest.raises(ImageError, match=r"skip_broken=true, and go on with --resume"):
            run(data, tmp_path / "on", **changes)
    assert content(tmp_path / "on" / "last.pth")["training"]["progress"]["step"] == 3
    for picture in (data / "images").glob("*.away"):
        picture.rename(picture.with_suffix(".jpg"))
    train(tiny_recipe(data, tmp_path / "on", **changes), lambda _: None, resume=True)
    run(data, tmp_path / "whole", **changes)
    assert losses(tmp_path / "on") == losses(tmp_path / "whole")


def test_no_split_of_that_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"in split 'dev': it has train, val; name one as val_split"
    ):
        run(folder, tmp_path, val_split="dev")


def test_what_ends_one_process_ends_all(folder: Path, tmp_path: Path) -> None:
    """Or the others would wait for its numbers for ever."""

    class Together(Process):
        def all_of(self, value: Any) -> list[Any]:
            other = (MaskMetrics(), DataError("a mask of another process's share"), {})
            return [pickle.loads(pickle.dumps(each)) for each in (value, other)]

    config = tiny_recipe(folder, tmp_path)
    validation = Validation(config, Together(torch.device("cpu")), open_split(folder, "val"))
    learner: Any = SimpleNamespace(judged=Cris(config.model).eval(), autocast=None)
    with pytest.raises(DataError, match="of another process's share"):
        validation.measure(learner)
