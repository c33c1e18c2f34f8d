"""Table 1's ablation: the same budget for four models, measured on everything, in one table."""

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cris_deploy.documents import plain
from cris_deploy.errors import CrisError, InputError
from cris_train import checkpoint
from cris_train.evaluation.metrics import PRECISION_NAMES
from cris_train.evaluation.paper import TABLE_1
from cris_train.model import CrisConfig
from cris_train.run.ablation import (
    CORNERS,
    Corner,
    CornerResult,
    corner_config,
    main,
    to_markdown,
)
from cris_train.run.recipe import read_config
from cris_train.synthetic.refer_files import write_scenes

RECIPE = Path(__file__).parents[3] / "train" / "configs" / "ablation.yaml"
TINY = [f"model.{key}={value}" for key, value in plain(CrisConfig.tiny()).items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, {"train": 4, "val": 2}, seed=3)
    return out


def test_corners_are_those_of_the_paper() -> None:
    assert [corner.name for corner in CORNERS] == [
        "neither",
        "contrastive",
        "decoder",
        "contrastive-decoder",
    ]
    first = [Corner(row.contrastive, row.decoder_layers > 0) for row in TABLE_1[:4]]
    assert list(CORNERS) == first


def test_corners_differ_in_two_settings_and_their_folder() -> None:
    config = read_config(RECIPE, ["output=runs/x"])
    configs = [corner_config(config, corner) for corner in CORNERS]
    assert [(c.model.contrastive, c.model.decoder_layers) for c in configs] == [
        (False, 0),
        (True, 0),
        (False, 2),
        (True, 2),
    ]
    for corner, one in zip(CORNERS, configs, strict=True):
        assert one.output == f"runs/x/seed-0/{corner.name}"
        model = replace(one.model, contrastive=True, decoder_layers=2)
        assert replace(one, model=model, output=config.output) == config


def test_a_recipe_without_what_is_taken_away() -> None:
    for override in ("model.decoder_layers=0", "model.contrastive=false"):
        with pytest.raises(InputError, match="recipe of an ablation has both"):
            corner_config(read_config(RECIPE, [override]), CORNERS[0])


def test_four_models_and_a_table(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = [
        *("--config", str(RECIPE), *TINY, f"data={data}", f"output={out}", "precision=fp32"),
        *("images_per_batch=2", "expressions_per_image=2", "tensorboard=false", "sheet_tiles=0"),
        *("lessons=[{samples: 4}, {samples: 5}]", "val_images=1", "--seeds", "2"),
    ]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    table = (out / "ablation.md").read_text()
    assert table in printed
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:6]]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["no", "no"],
        ["yes", "no"],
        ["no", "yes"],
        ["yes", "yes"],
    ]
    assert "each model saw 8 expressions" in table  # two steps of 4; the rest is no whole step
    assert "means of 2 seeds with 95% intervals" in table

    document = json.loads((out / "ablation.json").read_text())
    assert document["recipe"]["model"]["decoder_layers"] == 1
    every = [(seed, corner) for seed in (0, 1) for corner in CORNERS]
    for (seed, corner), result in zip(every, document["corners"], strict=True):
        assert (result["seed"], result["name"]) == (seed, corner.name)
        folder = out / f"seed-{seed}" / corner.name
        evaluation = result["evaluation"]
        # The whole split, not what the training looked at on the way.
        assert evaluation["limit"] == 0
        assert evaluation["splits"][0]["images"] == 2
        loaded = checkpoint.load(folder / "last.pth")
        assert evaluation["measured"]["sha256"] == loaded.sha256
        assert loaded.config.contrastive is corner.contrastive
        assert bool(loaded.config.decoder_layers) is corner.decoder
        built = checkpoint.build(loaded)
        assert result["parameters"] == sum(p.numel() for p in built.parameters())
        with (folder / "log.csv").open() as file:
            assert int(list(csv.DictReader(file))[-1]["step"]) == 2
    sizes = {result["name"]: result["parameters"] for result in document["corners"]}
    assert sizes["neither"] < sizes["contrastive"] < sizes["contrastive-decoder"]
    assert sizes["neither"] < sizes["decoder"] < sizes["contrastive-decoder"]

    # Given again, it trains nothing and finds the same.
    files = sorted(out.glob("seed-*/*/last.pth"))
    before = [checkpoint.load(file).sha256 for file in files]
    assert len(set(before)) == 8
    assert main(flags) == 0
    assert [checkpoint.load(file).sha256 for file in files] == before
    again = json.loads((out / "ablation.json").read_text())
    for old, new in zip(document["corners"], again["corners"], strict=True):
        assert new["evaluation"]["splits"] == old["evaluation"]["splits"]


@dataclass
class Score:
    metrics: dict[str, float]
    expressions: int = 10
    images: int = 2
    split: str = "val"


def result(seed: int, corner: Corner, iou: float) -> CornerResult:
    split = Score(dict.fromkeys(("mIoU", "oIoU", *PRECISION_NAMES), iou))
    report = SimpleNamespace(splits=[split], data="scenes")
    return CornerResult(corner, seed, 1_000_000, 8, 60.0, cast(Any, report))


def cells(table: str, line: int) -> list[str]:
    rows = [line for line in table.splitlines() if line.startswith("|") and "---" not in line]
    return [cell.strip() for cell in rows[line].split("|")[1:-1]]


def test_intervals_are_those_of_differences_within_seeds() -> None:
    # Seeds differ by ten points, what the decoder gains by one: 5, 6 and 7.
    found = [
        result(seed, corner, (40 + 10 * seed + corner.decoder * (5 + seed)) / 100)
        for seed in range(3)
        for corner in CORNERS
    ]
    table = to_markdown(found)
    # 4.303 x the standard deviation 10 / sqrt(3); 4.303 x 1 / sqrt(3).
    assert cells(table, 1)[2] == "50.00 ± 24.84"
    assert cells(table, 6)[:3] == ["contrastive", "neither", "+0.00 ± 0.00"]
    assert cells(table, 7)[:3] == ["decoder", "neither", "+6.00 ± 2.48"]
    # A fourth seed that has only begun does not count.
    assert to_markdown([*found, result(3, CORNERS[0], 0.9)]) == table
    one = to_markdown(found[:4])
    assert "one seed" in one
    assert "±" not in one
    assert cells(to_markdown(found[:1]), 1)[2] == "40.00"


def test_seeds_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    for seeds in ("0", "11"):
        assert main(["--config", str(RECIPE), "--seeds", seeds]) == 2
        assert f"--seeds is {seeds}, expected 1 to 10" in capsys.readouterr().err


def test_budgets_are_lessons(data: Path, tmp_path: Path) -> None:
    from cris_train.run.ablation import run_corner

    config = read_config(RECIPE, [f"data={data}", f"output={tmp_path}", "lessons=[]"])
    with pytest.raises(CrisError, match="lessons with samples"):
        run_corner(config, CORNERS[0], lambda line: None)


def test_unusable_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(RECIPE), f"output={tmp_path}", "data=absent"]) == 2
    assert "absent" in capsys.readouterr().err
    assert main(["--config", str(tmp_path / "no.yaml")]) == 2
