"""Fine-tuning: what the checkpoint decides, which weights are kept, and what is refused."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cris_deploy.errors import InputError
from cris_train import checkpoint
from cris_train.cli.train import main
from cris_train.data.augment import Augment
from cris_train.data.splits import open_split
from cris_train.evaluation.metrics import MaskMetrics
from cris_train.model import Cris, CrisConfig
from cris_train.run.learner import Learner
from cris_train.run.loop import TrainResult, train
from cris_train.run.tune import PAIRS, TUNED, blend, least_share, read_tuning, tune, write_pairs
from cris_train.synthetic.refer_files import write_scenes
from tests.helpers.training import content, rows, same, tiny_recipe

SHAPE = CrisConfig.tiny(dropout=0.0, word_len=13)
QUICK = (
    *("images_per_batch=2", "expressions_per_image=2", "lessons=[{samples: 8}]", "warmup_steps=0"),
    *("validate_every=0", "precision=fp32", "sheet_tiles=0", "tensorboard=false", "hold_out=0.5"),
)


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("init") / "mine.pth"
    return checkpoint.save(path, Cris(SHAPE))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 4}, seed=1)
    return folder


def test_the_checkpoint_gives_the_shape(init: Path, data: Path) -> None:
    config = read_tuning(init, data=data)
    assert (config.model, config.init, config.data) == (SHAPE, str(init), str(data))
    assert (config.hold_out, config.augment) == (0.1, None)
    changed = read_tuning(init, overrides=["model.word_len=9", "model.dropout=0.2"], data=data)
    assert changed.model == dataclasses.replace(SHAPE, word_len=9, dropout=0.2)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.neck_width=7", r"model.neck_width is 7, and .*mine.pth has \d+.*leave model.neck"),
        ("model.decoder_layers=9", "its weights fit no other shape"),
        ("epochs=3", r"with epochs=N set lessons=\[\]"),
        ("model.word_leng=3", "word_leng"),
    ],
)
def test_refused_settings(init: Path, data: Path, override: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_tuning(init, overrides=[override], data=data)


def test_refused_by_the_console(
    init: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*argv: str) -> str:
        assert main(list(argv)) == 2
        return capsys.readouterr().err

    tuning = ("--init", str(init), "--output", str(tmp_path / "run"))
    assert "--init needs --data DIR" in error(*tuning)
    assert "give a recipe (--config YAML), or a checkpoint" in error()
    assert "write data=" in error("--config", "any.yaml", "--data", str(data))
    (tmp_path / "empty").mkdir()
    assert "for data of your own, write lines of" in error(
        *tuning, "--data", str(tmp_path / "empty")
    )
    (tmp_path / "empty" / "train.jsonl").write_text("\n")
    assert "hold no line" in error(*tuning, "--data", str(tmp_path / "empty"))
    assert not (tmp_path / "run").exists()


def test_an_unreadable_picture_costs_nothing_of_the_run(
    init: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    write_scenes(data, {"train": 6, "val": 2}, seed=1)
    broken = open_split(data, "train")[-1].path
    whole = broken.read_bytes()
    broken.write_bytes(b"nothing")
    command = ["--init", str(init), "--data", str(data), "--output", str(run), *QUICK]
    command += ["lessons=[{samples: 12}]", "save_every=1"]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert broken.name in told
    assert "skip_broken=true" in told
    broken.write_bytes(whole)
    assert main([*command, "--resume"]) == 0
    assert (run / TUNED).is_file()


def test_a_run_leaves_weights_pairs_and_the_command(init: Path, data: Path, tmp_path: Path) -> None:
    config = read_tuning(init, overrides=QUICK, data=data, output=tmp_path)
    lines: list[str] = []
    found = tune(config, lines.append)
    assert found is not None
    assert found.checkpoint == tmp_path / TUNED
    assert checkpoint.load(found.checkpoint).config == SHAPE
    assert any("2 of 4 pictures are held out" in line for line in lines)
    assert any(re.search(r"mIoU 0\.\d+ before, 0\.\d+ after", line) for line in lines)
    pairs = [json.loads(line) for line in (tmp_path / PAIRS).read_text().splitlines()]
    assert all((tmp_path / pair["image"]).is_file() for pair in pairs)
    assert len({pair["image"] for pair in pairs}) == 2
    assert found.export[0] == "cris-export"
    assert found.export.count(str(tmp_path / PAIRS)) == 2


def test_pairs_take_turns_and_are_few(data: Path, tmp_path: Path) -> None:
    images = open_split(data, "train")
    path = write_pairs(tmp_path / PAIRS, images * 20)
    pairs = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(pairs) == 100
    firsts = [(tmp_path / pair["image"]).resolve() for pair in pairs[:4]]
    assert firsts == [image.path.resolve() for image in images]


def test_blend_is_the_line_between(init: Path) -> None:
    old = checkpoint.load(init)
    new = dataclasses.replace(
        old,
        state_dict={
            name: value + 1 if value.is_floating_point() else value
            for name, value in old.state_dict.items()
        },
    )
    halfway = blend(old, new, 0.25)
    for name, value in halfway.state_dict.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, old.state_dict[name] + 0.25)
    assert all(
        torch.equal(value, new.state_dict[name])
        for name, value in blend(old, new, 1.0).state_dict.items()
    )


def test_no_more_is_moved_than_pays() -> None:
    assert least_share(0.3, {0.4: 0.5, 0.6: 0.79, 0.8: 0.8, 1.0: 0.8}) == 0.6
    assert least_share(0.3, {0.4: 0.5, 0.6: 0.69, 0.8: 0.69, 1.0: 0.8}) == 1.0
    assert least_share(0.3, {0.4: 0.1, 0.6: 0.2, 0.8: 0.1, 1.0: 0.0}) == 0.6


def test_patience_ends_a_run_and_goes_on_ending_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MaskMetrics, "mean_iou", property(lambda self: 0.5))  # never any better
    config = tiny_recipe(data, tmp_path, epochs=5, validate_every=16, patience=2)
    lines: list[str] = []
    train(config, lines.append)
    assert any("no better for 2 validations" in line for line in lines)
    assert rows(tmp_path)[-1]["step"] == "3"
    train(config, lines.append, resume=True)
    assert rows(tmp_path)[-1]["step"] == "3"
    train(dataclasses.replace(config, patience=0), lines.append, resume=True)
    assert rows(tmp_path)[-1]["step"] == "5"


class Stopped(Exception):
    """A run that is killed."""


def test_augmented_runs_go_on_to_the_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = Augment(scale=(0.8, 1.25), crop=1.0, colour=0.2, flip=0.5)

    def run(name: str, *, resume: bool = False) -> TrainResult:
        config = tiny_recipe(
            data, tmp_path / name, epochs=4, cache=False, augment=changes, save_every=2
        )
        return train(config, lambda _: None, resume=resume)

    whole = run("whole")
    step = Learner.step

    def stops(self: Learner, batch: Any, number: int) -> Any:
        if number == 3:
            raise Stopped
        return step(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", stops)
        with pytest.raises(Stopped):
            run("halves")
    halves = run("halves", resume=True)
    assert same(content(whole.last), content(halves.last))
    assert rows(tmp_path / "whole") == rows(tmp_path / "halves")
