"""A lesson with crops: the encoders alone learn which words go with which object."""

import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from cris_deploy.errors import InputError
from cris_train import checkpoint
from cris_train.data.batch import Batch
from cris_train.data.feed import Draw
from cris_train.data.splits import open_splits
from cris_train.model import Cris, CrisConfig
from cris_train.model.backbone import Backbone, ImageFeatures, TextFeatures
from cris_train.run.course import Course
from cris_train.run.distributed import Process
from cris_train.run.loop import TrainResult, train
from cris_train.run.recipe import Lesson, Schedule
from cris_train.run.towers import MARGIN, TEMPERATURE, _squares, crop_loss
from tests.helpers.training import losses, rows, same, tiny_recipe

SHAPE = CrisConfig.tiny()


def model() -> Cris:
    torch.manual_seed(0)
    return Cris(SHAPE).train()


def batch(words: list[int]) -> Batch:
    """Two pictures with half of `words` each; every object is a square of its own colour."""
    tokens = torch.zeros(len(words), 17, dtype=torch.int64)
    tokens[:, 0], tokens[:, 2] = 49406, 49407
    tokens[:, 1] = torch.tensor(words)
    target = torch.zeros(len(words), 1, 16, 16)
    image = torch.zeros(2, 3, 64, 64)
    for row in range(len(words)):
        place = row % (len(words) // 2) * 5
        target[row, 0, 3:7, place : place + 4] = 1.0
        picture = image[row // (len(words) // 2)]
        picture[:, 12:28, 4 * place : 4 * place + 16] = torch.randn(3, 1, 1)
    return Batch(image, tokens, target, ("a", "b"))


class Known:
    """Encoders that say which of three colours a crop has, and which of three words a sentence."""

    def encode_image(self, crops: torch.Tensor) -> ImageFeatures:
        colours = crops.mean((2, 3)).argmax(1)
        c5 = torch.eye(3)[colours][:, :, None, None].expand(-1, -1, 1, 1)
        return ImageFeatures(c5, c5, c5)

    def encode_text(self, tokens: torch.Tensor) -> TextFeatures:
        sentence = torch.eye(3)[tokens[:, 1] - 320]
        return TextFeatures(sentence, sentence, tokens == 0)


@pytest.mark.parametrize("words", [[320, 321], [320, 321, 322], [320, 321, 320, 322, 320]])
@pytest.mark.parametrize("knows", [True, False])
def test_is_clip_s_objective(words: list[int], knows: bool) -> None:
    """Written out: of every object over all sentences, and of every sentence over all objects."""
    count = len(words)
    found = batch(words * 2)
    colours = [w - 320 if knows else 0 for w in words * 2]
    for row, colour in enumerate(colours):
        picture, place = found.image[row // count], row % count * 10
        picture[:, :, place : place + 10] = torch.eye(3)[colour][:, None, None]
        found.target[row] = 0.0
        found.target[row, 0, 8, place // 4 + 1] = 1.0
    likeness = [[float(c == w - 320) / TEMPERATURE for w in words * 2] for c in colours]
    costs = []
    for table in (likeness, [list(column) for column in zip(*likeness, strict=True)]):
        for row, line in enumerate(table):
            total = math.log(math.fsum(map(math.exp, line)))
            equal = [n for n, word in enumerate(words * 2) if word == (words * 2)[row]]
            costs.append(math.fsum(total - line[n] for n in equal) / len(equal))
    loss = crop_loss(cast(Backbone, Known()), found, 32)
    assert float(loss) == pytest.approx(math.fsum(costs) / len(costs), rel=1e-5)


def test_only_the_encoders_learn() -> None:
    cris = model()
    crop_loss(cris.backbone, batch([320, 321, 322, 323, 324, 325]), 32).backward()
    learnt = {name for name, p in cris.named_parameters() if p.grad is not None}
    every = {f"backbone.{name}" for name, _ in cris.backbone.named_parameters()}
    assert learnt == every - {"backbone.logit_scale"}


def test_objects_that_are_not_there_are_left_out() -> None:
    six = batch([320, 321, 322, 323, 324, 325])
    six.target[[1, 4]] = 0.0
    torch.manual_seed(1)
    with_them = crop_loss(model().backbone, six, 32)
    kept = [0, 2, 3, 5]
    four = Batch(six.image, six.tokens[kept], six.target[kept], six.names)
    torch.manual_seed(1)
    assert float(with_them.detach()) == pytest.approx(
        float(crop_loss(model().backbone, four, 32).detach()), rel=1e-6
    )


def test_squares_have_the_whole_object() -> None:
    masks = torch.zeros(50, 40, 40)
    masks[:, 10:15, 20:32] = 0.5
    torch.manual_seed(0)
    left, top, right, bottom = _squares(masks).unbind(1)
    for low, high, first, last in ((left, right, 20, 32), (top, bottom, 10, 15)):
        assert bool((low <= first).all())
        assert bool((high >= last).all())
    sides = (right - left) / 12
    assert torch.allclose(right - left, bottom - top)
    assert MARGIN[0] <= float(sides.min()) < float(sides.max()) <= MARGIN[1]
    assert len(set(left.tolist())) == 50


def run(folder: Path, output: Path, *, resume: bool = False, **changes: Any) -> TrainResult:
    recipe = tiny_recipe(
        folder,
        output,
        **{
            "draw": Draw.IMAGE,
            "images_per_batch": 2,
            "expressions_per_image": 3,
            "schedule": Schedule.COSINE,
            "final_factor": 1.0,
            "validate_every": 6,
            "log_every": 10,
            "lessons": (Lesson(samples=240, crops=32),),
            **changes,
        },
    )
    return train(recipe, lambda _: None, resume=resume)


def test_a_lesson_of_crops_comes_first_and_is_not_measured(folder: Path, tmp_path: Path) -> None:
    both = (Lesson(samples=240, crops=32), Lesson(samples=12))
    run(folder, tmp_path / "both", lessons=both)
    measured = [int(row["step"]) for row in rows(tmp_path / "both") if row["mean_iou"]]
    assert measured == [41, 42]  # not in the first 40 steps
    found = losses(tmp_path / "both")
    # Six objects of a step: about log 6 where nothing is known.
    assert found[0] > 1.0
    assert min(found[1:4]) < found[0]


def test_goes_on_in_the_midst_of_it(folder: Path, tmp_path: Path) -> None:
    whole = run(folder, tmp_path / "whole", save_every=7)

    class Stop(Exception):
        pass

    calls = 0

    def stopping(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 17:
            raise Stop
        return crop_loss(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cris_train.run.learner.crop_loss", stopping)
        with pytest.raises(Stop):
            run(folder, tmp_path / "parts", save_every=7)
    again = run(folder, tmp_path / "parts", save_every=7, resume=True)
    assert same(
        *(checkpoint.build(checkpoint.load(result.last)).state_dict() for result in (whole, again))
    )


def test_one_process_alone(folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        folder,
        tmp_path,
        images_per_batch=2,
        schedule=Schedule.COSINE,
        lessons=(Lesson(samples=8, crops=32),),
    )
    split = open_splits(folder)["train"]
    two = Process(torch.device("cpu"), rank=0, world=2, told="")
    with pytest.raises(InputError, match="without torchrun"):
        Course(recipe, split, two)
