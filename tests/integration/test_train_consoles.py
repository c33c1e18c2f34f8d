"""cris-scenes, cris-train and cris-eval, one after the other, as a user would."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cris_deploy import __version__
from cris_deploy.documents import plain
from cris_train.cli import data as data_cli
from cris_train.cli import eval as eval_cli
from cris_train.cli import scenes, train
from cris_train.model import CrisConfig
from cris_train.run import ablation


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    counts = ["--train", "8", "--val", "3", "--seed", "5", "--workers", "1"]
    assert scenes.main([str(folder), *counts]) == 0
    return folder


@pytest.mark.parametrize(
    "command",
    [
        (scenes.main,),
        (train.main,),
        (eval_cli.main,),
        (data_cli.main,),
        (data_cli.main, "check"),
        (data_cli.main, "speed"),
        (ablation.main,),
    ],
)
def test_help_has_examples_and_every_console_a_version(
    command: tuple[Callable[[list[str]], int], *tuple[str, ...]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    main, *subcommand = command
    with pytest.raises(SystemExit, match="0"):
        main([*subcommand, "--help"])
    examples = capsys.readouterr().out.partition("examples:\n")[2]
    assert len(examples.splitlines()) >= 2
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


def test_scenes_to_checkpoint_to_metrics(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    settings = {
        "model": plain(CrisConfig.tiny()),
        "data": str(data),
        "output": str(tmp_path / "run"),
        "images_per_batch": 4,
        "expressions_per_image": 2,
        "lessons": [{"samples": 32}],
        "schedule": "cosine",
        "draw": "image",
        "validate_every": 16,
    }
    recipe.write_text(yaml.safe_dump(settings))
    assert train.main(["--config", str(recipe), "seed=3"]) == 0
    best = tmp_path / "run" / "best.pth"
    assert best.exists()
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) >= 3
    capsys.readouterr()

    flags = ["--ckpt", str(best), "--data", str(data), "--json"]
    assert eval_cli.main(flags) == 0
    (score,) = json.loads(capsys.readouterr().out)["splits"]
    assert score["images"] == 3
    assert 0.0 <= score["mean_iou"] <= 1.0
    assert eval_cli.main([*flags, "--split", "test"]) == 2
    assert "test" in capsys.readouterr().err


def test_unknown_setting(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"learning_rat": 1e-3}))
    assert train.main(["--config", str(recipe)]) == 2
    assert "learning_rat" in capsys.readouterr().err


def test_folder_in_use(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scenes.main([str(data), "--train", "1", "--val", "1"]) == 2
    assert "not an empty folder" in capsys.readouterr().err
