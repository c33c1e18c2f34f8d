"""`cris-data`: what is there, what is missing, and how fast it is read."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cris_train.cli.data import main
from cris_train.data.check import PUBLISHED, PUBLISHED_REFCOCOG, Counts
from cris_train.synthetic.photographs import write_photographs
from cris_train.synthetic.refer_files import write_scenes

Output = Callable[[], str]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(out, {"train": 4, "val": 2}, seed=5)
    return out


@pytest.fixture
def folder(scenes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "scenes"))


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    return lambda: capsys.readouterr().out


def test_a_whole_data_set(folder: Path, output: Output) -> None:
    assert main(["check", str(folder), "--pictures"]) == 0
    table = output()
    assert "published" not in table
    assert table.splitlines()[-1] == "whole"
    assert main(["check", str(folder), "--json"]) == 0
    report = json.loads(output())
    references = pickle.loads((folder / "refs(unc).p").read_bytes())
    assert report["counts"]["all"] == {
        "images": 6,
        "objects": len(references),
        "expressions": sum(len(reference["sentences"]) for reference in references),
    }
    assert report["counts"]["val"]["images"] == 2
    assert report["whole"] is True


def test_missing_pictures(folder: Path, output: Output) -> None:
    lost = sorted((folder / "images").iterdir())[1:3]
    for path in lost:
        path.unlink()
    assert main(["check", str(folder)]) == 1
    table = output()
    assert f"2 of 6 pictures are missing in {folder / 'images'}" in table
    assert all(path.name in table for path in lost)
    assert table.splitlines()[-1] == "not whole"
    assert main(["check", str(folder), "--json"]) == 1
    assert json.loads(output())["missing"] == [str(path) for path in lost]


def test_broken_pictures_and_masks(folder: Path, output: Output) -> None:
    path = sorted((folder / "images").iterdir())[0]
    path.write_bytes(path.read_bytes()[:500])
    instances = json.loads((folder / "instances.json").read_text())
    segmentation = instances["annotations"][-1]["segmentation"]
    segmentation["counts"] = [segmentation["size"][0] * segmentation["size"][1]]
    (folder / "instances.json").write_text(json.dumps(instances))
    assert main(["check", str(folder)]) == 0  # not opened
    output()
    assert main(["check", str(folder), "--pictures"]) == 1
    table = output()
    assert "1 pictures cannot be used" in table
    assert path.name in table
    assert "1 masks cannot be used" in table
    assert "the mask is empty" in table


def test_published_figures(folder: Path, output: Output) -> None:
    figures = PUBLISHED["refcoco"]
    splits = (figures[name].expressions or 0 for name in ("train", "val", "testA", "testB"))
    assert sum(splits) == figures["all"].expressions == 142_210
    assert PUBLISHED["refcoco+"]["all"] == Counts(19_992, 49_856, 141_564)
    assert main(["check", str(folder), "--name", "refcoco"]) == 1
    table = output()
    assert "published (refcoco)" in table
    assert "fault: all: 6 images, published are 19,994" in table
    assert "fault: testB: 0 expressions, published are 5,095" in table
    named = folder.rename(folder.parent / "refcoco+")
    assert main(["check", str(named)]) == 1
    assert "published are 141,564" in output()


@pytest.mark.parametrize(
    ("split_by", "splits"), [("umd", ["train", "val", "test"]), ("google", ["train", "val"])]
)
def test_refcocog_is_counted_as_its_files_are(
    folder: Path, output: Output, split_by: str, splits: list[str]
) -> None:
    figures = PUBLISHED_REFCOCOG[split_by]
    assert list(figures) == [*splits, "all"]
    for what, in_all in (("objects", 49_822), ("expressions", 95_010)):
        assert getattr(figures["all"], what) == in_all
        assert sum(getattr(figures[name], what) for name in splits) == in_all
    (folder / "refs(unc).p").rename(folder / f"refs({split_by}).p")
    command = ["check", str(folder), "--name", "refcocog", "--split-by", split_by]
    assert main(command) == 1
    table = output()
    assert "fault: all: 6 images, published are 25,799" in table
    assert re.search(r"fault: all: \d+ expressions, published are 95,010", table)
    assert "note: the paper counts 26,711 images, 54,822 objects and 104,560 expressions" in table


def test_pictures_of_two_splits_are_told(folder: Path, output: Output) -> None:
    references = pickle.loads((folder / "refs(unc).p").read_bytes())
    references[0]["split"] = "val"
    (folder / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    assert main(["check", str(folder)]) == 0
    assert "note: 1 pictures are in train and in val" in output()


def test_unusable_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "cris-data: error:" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    write_scenes(tmp_path / "scenes", {"train": 1}, seed=0)
    assert main(["check", str(tmp_path / "scenes"), "--name", "coco"]) == 2
    assert "refcoco, refcoco+, refcocog" in capsys.readouterr().err
    assert main(["speed", str(tmp_path / "scenes"), "--batch", "500"]) == 2
    assert "images_per_batch is 500" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "1"])
def test_speed(tmp_path: Path, output: Output, workers: str) -> None:
    write_photographs(tmp_path, 4)
    command = ["speed", str(tmp_path), "--size", "64", "--batch", "2", "--seconds", "0.2"]
    assert main([*command, "--workers", workers, "--json"]) == 0
    speed = json.loads(output())
    assert speed["per_second"] > 0
    assert speed["floats_per_second"] > 0
    assert set(speed["steps"]) == {
        "read and decode", "letterbox", "mask", "target", "tokens", "collate", "normalise"
    }  # fmt: skip
    assert all(spent > 0 for spent in speed["steps"].values())
    # Cost what photographs cost: 0.2 to 0.7 bytes a pixel.
    assert 60e3 < speed["mean_bytes"] < 220e3
    assert main([*command, "--workers", workers]) == 0
    assert "samples/s as bytes" in output()
