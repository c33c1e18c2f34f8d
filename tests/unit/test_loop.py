"""The training loop: it learns, repeats by seed, stops at NaN, and reads its recipe strictly."""

import csv
import dataclasses
import math
from pathlib import Path

import pytest
import torch

from cris_deploy.errors import DataError, InputError, TrainingError
from cris_train import checkpoint
from cris_train.cli.train import main
from cris_train.config import Lesson, TrainConfig, read_config
from cris_train.data.scenes_to_refer import write_scenes
from cris_train.loop import LOG_COLUMNS, train
from cris_train.model import Cris, CrisConfig

RECIPES = Path(__file__).parents[2] / "train" / "configs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, {"train": 4, "val": 2}, seed=1)
    return out


def recipe(data: Path, output: Path, samples: int) -> TrainConfig:
    return TrainConfig(
        model=CrisConfig.tiny(dropout=0.0),
        data=str(data),
        # Learning the four pictures by heart is the test: they are measured, too.
        val_split="train",
        output=str(output),
        images_per_batch=4,
        expressions_per_image=4,
        learning_rate=3e-3,
        backbone_factor=1.0,
        lessons=(Lesson(samples=samples),),
        validate_every=10**9,
    )


def test_learns_four_scenes_by_heart(folder: Path, tmp_path: Path) -> None:
    before = train(recipe(folder, tmp_path / "short", samples=16), lambda _: None)
    after = train(recipe(folder, tmp_path / "long", samples=16 * 300), lambda _: None)
    assert before.mean_iou < 0.2
    assert after.mean_iou > 0.4  # 0.66 when written; 0.03 untrained
    assert after.final.mean_iou > 2 * before.final.mean_iou
    first, last = (last_row(tmp_path / name / "log.csv") for name in ("short", "long"))
    assert last["loss"] < first["loss"] / 3


def test_same_seed_same_model(folder: Path, tmp_path: Path) -> None:
    def parameters(name: str, seed: int) -> torch.Tensor:
        config = dataclasses.replace(recipe(folder, tmp_path / name, samples=48), seed=seed)
        model = checkpoint.build(checkpoint.load(train(config, lambda _: None).last))
        return torch.cat([p.flatten() for p in model.parameters()])

    first = parameters("a", 0)
    assert torch.equal(first, parameters("b", 0))
    assert not torch.equal(first, parameters("c", 1))


def test_writes_log_and_loadable_checkpoints(folder: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(
        recipe(folder, tmp_path, samples=64), validate_every=32, val_images=1
    )
    lines: list[str] = []
    result = train(config, lines.append)
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == LOG_COLUMNS
    assert [float(row["samples"]) for row in rows] == [32, 64, 64]  # two on the way, one at the end
    assert len(lines) == 3
    assert "mIoU" in lines[0]
    for path in (result.best, result.last):
        loaded = checkpoint.load(path)
        assert loaded.config == config.model
        assert loaded.best_iou == pytest.approx(result.mean_iou)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pth", "last.pth", "log.csv"]


def test_nan_stops_and_keeps_the_last_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(recipe(folder, tmp_path, samples=160), validate_every=16)
    forward, calls = Cris.forward, 0

    def failing(self: Cris, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += self.training
        logits = forward(self, image, tokens)
        return logits * math.nan if self.training and calls == 4 else logits

    monkeypatch.setattr(Cris, "forward", failing)
    with pytest.raises(TrainingError, match=r"nan at step 4: lower learning_rate"):
        train(config, lambda _: None)
    monkeypatch.undo()
    model = checkpoint.build(checkpoint.load(tmp_path / "last.pth"))  # refuses what is not finite
    assert checkpoint.load(tmp_path / "last.pth").epoch == 3
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_too_few_pictures(folder: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(recipe(folder, tmp_path, samples=16), images_per_batch=50)
    with pytest.raises(TrainingError, match="images_per_batch is 50"):
        train(config, lambda _: None)


def test_lessons_take_their_share_of_steps(folder: Path, tmp_path: Path) -> None:
    lessons = (Lesson(samples=32, max_words=4), Lesson(samples=48))
    config = dataclasses.replace(
        recipe(folder, tmp_path, samples=0), lessons=lessons, images_per_batch=2
    )
    assert config.total_steps == 4 + 6
    train(config, lambda _: None)
    assert last_row(tmp_path / "log.csv")["step"] == 10


def last_row(path: Path) -> dict[str, float]:
    with path.open() as file:
        return {key: float(value) for key, value in list(csv.DictReader(file))[-1].items()}


def test_every_recipe_that_is_shipped_can_be_read() -> None:
    recipes = sorted(RECIPES.glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert read_config(path).total_steps > 0


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 3\nmodel: {input_size: 128}\n")
    config = read_config(path, ["seed=5", "model.word_len=22", "learning_rate=1e-3", "bf16=true"])
    assert (config.seed, config.model.word_len, config.model.input_size) == (5, 22, 128)
    assert config.learning_rate == 1e-3
    assert config.bf16 is True


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sead=1", "sead"),
        ("model.word_length=22", "word_length"),
        ("seed", "key=value"),
        ("seed=many", "seed"),
        ("bf16=3", "bf16"),
        ("learning_rate=fast", "learning_rate"),
        ("learning_rate=7", "learning_rate"),
        ("images_per_batch=0", "images_per_batch"),
        ("seed.x=1", "seed"),
        ("lessons=[{sample: 3}]", "lessons"),
    ],
)
def test_refused_overrides(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 3\n")
    with pytest.raises(InputError, match=message):
        read_config(path, [override])


def test_console(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(tmp_path / "absent.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    path = tmp_path / "recipe.yaml"
    path.write_text("images_per_batch: 2\nmodel: {}\n")
    assert main(["--config", str(path), "imagesper_batch=2"]) == 2
    assert "imagesper_batch" in capsys.readouterr().err


def test_absent_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        train(recipe(tmp_path / "nothing", tmp_path / "out", samples=16), lambda _: None)
