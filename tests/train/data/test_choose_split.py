"""Which pictures a run is measured on: the data's own, or some that are held out."""

from pathlib import Path

import pytest

from cris_deploy.errors import DataError
from cris_train.data.choose import Chosen, choose
from cris_train.data.refer import ReferImage
from cris_train.data.splits import open_splits
from cris_train.synthetic.refer_files import write_scenes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 10}, seed=1)
    return folder


@pytest.fixture(scope="module")
def split(root: Path) -> tuple[ReferImage, ...]:
    return open_splits(root)["train"]


def chosen(splits: dict[str, tuple[ReferImage, ...]], root: Path, **changes: object) -> Chosen:
    settings = {"train": "train", "val": "val", "hold_out": 0.3, "seed": 0}
    return choose(splits, root, **{**settings, **changes})


def test_a_split_for_validation_is_taken(root: Path, split: tuple[ReferImage, ...]) -> None:
    found = chosen({"train": split[:6], "val": split[6:]}, root)
    assert (found.train, found.val, found.told) == (split[:6], split[6:], ())


def test_pictures_are_held_out_by_seed_and_it_is_said(
    root: Path, split: tuple[ReferImage, ...]
) -> None:
    found = chosen({"train": split}, root)
    assert len(found.val) == 3
    assert {image.path for image in found.val}.isdisjoint(image.path for image in found.train)
    assert len(found.train) + len(found.val) == 10
    assert found == chosen({"train": split}, root)
    assert found.val != chosen({"train": split}, root, seed=1).val
    (line,) = found.told
    assert "no split 'val': 3 of 10 pictures are held out" in line


def test_the_only_split_is_learnt_from(root: Path, split: tuple[ReferImage, ...]) -> None:
    for name in ("mine", "val"):
        found = chosen({name: split}, root)
        assert (len(found.train), len(found.val)) == (7, 3)
        assert repr(name) in found.told[0]


def test_refused(root: Path, split: tuple[ReferImage, ...]) -> None:
    with pytest.raises(DataError, match=r"no references in split 'val'.*set hold_out=0.1"):
        chosen({"train": split}, root, hold_out=0.0)
    with pytest.raises(DataError, match="one picture in split 'train', and none to spare"):
        chosen({"train": split[:1]}, root)
