"""A user's own data: lines of JSON, pictures and masks; and which reader a folder gets."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from cris_deploy.errors import DataError
from cris_train.data.dataset import ReferData
from cris_train.data.splits import open_split, open_splits
from cris_train.model import CrisConfig
from cris_train.synthetic.refer_files import write_scenes

CUP = np.zeros((30, 40), np.uint8)
CUP[5:12, 20:33] = 1
PEN = np.zeros((30, 40), np.uint8)
PEN[20, 3:30] = 7


def write(root: Path, *lines: dict[str, Any] | str, name: str = "data.jsonl") -> Path:
    (root / "images").mkdir(exist_ok=True)
    (root / "masks").mkdir(exist_ok=True)
    for picture in ("desk", "room"):
        cv2.imwrite(str(root / "images" / f"{picture}.jpg"), np.full((30, 40, 3), 90, np.uint8))
    cv2.imwrite(str(root / "masks" / "cup.png"), CUP * 255)
    cv2.imwrite(str(root / "masks" / "pen.png"), PEN)
    cv2.imwrite(str(root / "masks" / "small.png"), CUP[:20])
    cv2.imwrite(str(root / "masks" / "empty.png"), np.zeros((30, 40), np.uint8))
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (root / name).write_text("\n".join(text) + "\n")
    return root


def line(image: str = "desk", mask: Any = "cup", **rest: Any) -> dict[str, Any]:
    mask = f"masks/{mask}.png" if isinstance(mask, str) else mask
    return {"image": f"images/{image}.jpg", "mask": mask, **rest}


def test_lines_become_pictures_with_objects(tmp_path: Path) -> None:
    rle = coco_mask.encode(np.asfortranarray(PEN > 0, np.uint8))
    counts = {"size": [30, 40], "counts": rle["counts"].decode()}
    write(
        tmp_path,
        line(expression="the red cup", split="train"),
        line(mask=counts, expressions=["pen", "The left thing"], split="train"),
        "",
        line(expression="cup", split="train"),
        line("room", "pen", expression="a pen", split="val"),
    )
    splits = open_splits(tmp_path)
    assert list(splits) == ["train", "val"]
    (desk,) = splits["train"]
    assert (desk.path, desk.height, desk.width) == (tmp_path / "images" / "desk.jpg", 30, 40)
    cup, pen = desk.objects
    assert cup.expressions == ("the red cup", "cup")
    assert pen.expressions == ("pen", "The left thing")
    assert np.array_equal(desk.mask(cup), CUP > 0)
    assert np.array_equal(desk.mask(pen), PEN > 0)
    (room,) = open_split(tmp_path, "val")
    assert np.array_equal(room.mask(room.objects[0]), PEN > 0)
    items = [item for images in splits.values() for image in images for item in image.objects]
    numbers = [number for item in items for number in item.sentence_ids]
    assert len({item.ref_id for item in items}) == 3
    assert sorted(numbers) == list(range(5))
    sample = ReferData([desk], CrisConfig.tiny()).sample(0, [(1, 1)])
    assert sample.target.max() > 0


def test_a_file_names_the_split_of_lines_without_one(tmp_path: Path) -> None:
    write(tmp_path, line(expression="cup"), name="val.jsonl")
    write(
        tmp_path,
        line(expression="cup"),
        line("room", expression="cup", split="test"),
        name="train.jsonl",
    )
    assert sorted(open_splits(tmp_path)) == ["test", "train", "val"]
    with pytest.raises(DataError, match=r"split 'testA': it has train, test, val"):
        open_split(tmp_path, "testA")


def test_pictures_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, {"image": "desk.jpg", "mask": "masks/cup.png", "expression": "cup"})
    (image,) = open_split(tmp_path, "data", images=tmp_path / "images")
    assert image.path.is_file()


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB", "RGBA", "LA"])
def test_masks_of_every_kind(tmp_path: Path, mode: str) -> None:
    write(tmp_path, line(mask="any", expression="cup"))
    path = tmp_path / "masks" / "any.png"
    small = Image.fromarray(CUP)  # 0 and 1
    if mode == "1":
        Image.fromarray(CUP > 0).save(path)
    elif mode == "P":
        small.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white, and background all the same
        small.convert("P").save(path) if small.mode != "P" else small.save(path)
    elif mode == "I;16":
        Image.fromarray(CUP.astype(np.uint16)).save(path)
    else:
        small.convert(mode).save(path)  # opaque alpha, which does not count
    (image,) = open_split(tmp_path, "data")
    assert np.array_equal(image.mask(image.objects[0]), CUP > 0)


def test_a_line_ends_with_its_newline_and_nowhere_else(tmp_path: Path) -> None:
    # Unicode has other line ends, which stand in JSON as they are.
    entry = line(expression="the cup\u2028on the left\x85")
    write(tmp_path, json.dumps(entry, ensure_ascii=False))
    (image,) = open_split(tmp_path, "data")
    assert image.objects[0].expressions == ("the cup\u2028on the left\x85",)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON: maximum recursion"),
        ("[1]", "line 2: write one object"),
        (line(expression="x", maks=1), "line 2: unknown key maks; known: image, mask"),
        (line(), "line 2: give either expression"),
        (line(expression="x", expressions=["y"]), "line 2: give either expression"),
        (line(expressions=[]), "line 2: expressions is"),
        (line(expression=" "), "line 2: expression is ' '"),
        (line(expression=3), "line 2: expression is 3"),
        (line(expression="x", split=""), "line 2: split is ''"),
        ({"mask": "masks/cup.png", "expression": "x"}, "line 2: image is None"),
        (line(mask="absent", expression="x"), r"line 2: mask .*absent\.png does not exist"),
        (line(mask=3, expression="x"), "line 2: mask is neither"),
        (line(mask={"size": [30], "counts": []}, expression="x"), "line 2: mask is neither"),
        (line(mask="small", expression="x"), "line 2: the mask is 40x20, in data.jsonl line 1"),
        (line(expression="cup"), "line 2: 'cup' was said of this mask in data.jsonl line 1"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path: Path, wrong: Any, message: str) -> None:
    write(tmp_path, line(expression="cup"), wrong)
    with pytest.raises(DataError, match=message):
        open_splits(tmp_path)


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    write(tmp_path, line(mask="empty", expression="nothing"), line(mask="cup", expression="cup"))
    (image,) = open_split(tmp_path, "data")
    with pytest.raises(DataError, match=r"data\.jsonl line 1 \(desk\.jpg\): the mask is empty"):
        image.mask(image.objects[0])
    path = tmp_path / "masks" / "cup.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"line 2 .*cup\.png cannot be read"):
        image.mask(image.objects[1])
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"line 2: mask .*cup\.png cannot be read"):
        open_split(tmp_path, "data")


def test_a_picture_of_another_size_than_its_masks(tmp_path: Path) -> None:
    write(tmp_path, line(expression="cup"))
    cv2.imwrite(str(tmp_path / "images" / "desk.jpg"), np.zeros((31, 40, 3), np.uint8))
    data = ReferData(open_split(tmp_path, "data"), CrisConfig.tiny())
    with pytest.raises(DataError, match=r"desk\.jpg is 40x31, its masks are 40x30"):
        data.square(0)


def test_which_reader(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"it is not a folder; .*cris-scenes"):
        open_split(tmp_path / "absent", "train")
    with pytest.raises(DataError, match=r"neither refs\(unc\)\.p nor a \*\.jsonl.*github\.com"):
        open_split(tmp_path, "train")
    (tmp_path / "data.jsonl").write_text("")
    with pytest.raises(DataError, match="hold no line"):
        open_split(tmp_path, "train")
    scenes = tmp_path / "scenes"
    write_scenes(scenes, {"train": 1}, seed=0)
    (scenes / "samples.jsonl").write_text("not read: refs are there\n")
    assert len(open_split(scenes, "train")) == 1
    (scenes / "refs(unc).p").rename(scenes / "refs(google).p")
    with pytest.raises(DataError, match=r"no refs\(unc\)\.p, but .*choose split_by from google"):
        open_split(scenes, "train")
    assert len(open_split(scenes, "train", split_by="google")) == 1
