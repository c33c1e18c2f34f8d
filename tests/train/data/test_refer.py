"""RefCOCO's files: what the writer writes the reader reads, and a pickle with code is refused."""

import contextlib
import json
import math
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from cris_deploy.errors import DataError, InputError
from cris_deploy.pixels.image import decode
from cris_train.data.pictures import missing_pictures, require_pictures
from cris_train.data.refer import decode_segmentation, load_references, read_split
from cris_train.synthetic.expressions import describe
from cris_train.synthetic.refer_files import split_scene, write_scenes
from cris_train.synthetic.render import render


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, {"train": 6, "val": 3}, seed=5)
    return out


def test_round_trip(folder: Path) -> None:
    split = read_split(folder, "val")
    assert len(split) == 3
    for index, image in enumerate(split):
        scene, rng = split_scene(5, "val", index)
        drawing = render(scene)
        said = [
            tuple(d.text for d in describe(scene, number, rng))
            for number in range(len(scene.objects))
        ]
        assert (image.height, image.width) == (scene.height, scene.width)
        assert decode(image.path).shape == drawing.image.shape
        described = [number for number, sentences in enumerate(said) if sentences]
        assert [item.expressions for item in image.objects] == [said[n] for n in described]
        for item, number in zip(image.objects, described, strict=True):
            assert np.array_equal(image.mask(item), drawing.masks[number])


def test_splits_share_no_picture(folder: Path) -> None:
    train, val = read_split(folder, "train"), read_split(folder, "val")
    assert not {image.path for image in train} & {image.path for image in val}


def test_the_files_have_the_published_keys(folder: Path) -> None:
    reference = pickle.loads((folder / "refs(unc).p").read_bytes())[0]
    assert set(reference) == {
        "ref_id", "ann_id", "category_id", "image_id", "file_name", "split", "sent_ids", "sentences"
    }  # fmt: skip
    assert set(reference["sentences"][0]) == {"raw", "sent", "sent_id", "tokens"}
    instances = json.loads((folder / "instances.json").read_text())
    assert {"images", "annotations", "categories"} <= set(instances)
    annotation = instances["annotations"][0]
    x, y, width, height = annotation["bbox"]
    mask = read_split(folder, "train")[0].mask(read_split(folder, "train")[0].objects[0])
    rows, columns = np.nonzero(mask)
    assert (columns.min(), rows.min()) == (x, y)
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (width, height)
    assert annotation["area"] == mask.sum()


def test_every_sentence_has_a_kind(folder: Path) -> None:
    kinds = json.loads((folder / "kinds.json").read_text())
    numbers = [
        number
        for split in ("train", "val")
        for image in read_split(folder, split)
        for item in image.objects
        for number in item.sentence_ids
    ]
    assert sorted(numbers) == sorted(int(number) for number in kinds)


def test_writing_needs_an_empty_folder(folder: Path) -> None:
    with pytest.raises(InputError, match="not an empty folder"):
        write_scenes(folder, {"train": 1}, seed=0)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("broken-in",)


def test_a_pickle_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([{"ref_id": Malicious()}]))
    with pytest.raises(DataError, match="mkdir"):
        load_references(path)
    assert not (tmp_path / "broken-in").exists()


def test_python_2_pickles_are_read(tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    # Python 2 wrote byte strings (S, U), unicode and longs: none of them needs a class.
    path.write_bytes(b"(lp0\n(dp1\nS'split'\np2\nS'val'\np3\nsS'ref_id'\np4\nL7L\nsa.")
    assert load_references(path) == [{"split": "val", "ref_id": 7}]


@pytest.mark.parametrize("code", [b"r\0\0\x40\0", b"p4194304\n", b"\x96\0\0\x40\0\0\0\0\0"])
def test_a_number_in_a_pickle_takes_no_memory(tmp_path: Path, code: bytes) -> None:
    """Python's unpicklers make room for what a file announces, each where the other does not."""
    path = tmp_path / "refs(unc).p"
    path.write_bytes(b"]" + code + b".")
    tracemalloc.start()
    try:
        with contextlib.suppress(DataError):
            assert load_references(path) == []
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 2**20


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"a": 1})[:-3]])
def test_damaged_pickles(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(DataError, match="readable pickle"):
        load_references(path)


def test_other_content(tmp_path: Path) -> None:
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match="list of references"):
        load_references(tmp_path / "refs(unc).p")
    with pytest.raises(DataError, match="cannot be read"):
        load_references(tmp_path / "absent.p")


def test_unknown_split(folder: Path) -> None:
    with pytest.raises(DataError, match="'testA'"):
        read_split(folder, "testA")


def changed(
    folder: Path, out: Path, change: Callable[[list[dict[str, Any]], dict[str, Any]], None]
) -> Path:
    """A copy of the data set's two files in `out`, after `change(references, instances)`."""
    references = pickle.loads((folder / "refs(unc).p").read_bytes())
    instances = json.loads((folder / "instances.json").read_text())
    change(references, instances)
    (out / "refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    (out / "instances.json").write_text(json.dumps(instances))
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda refs, known: known["annotations"].__delitem__(slice(1, None)),
            r"references \(ref_id\) name an annotation .*: 1, 2, 3, \.\.\.; use refs and",
        ),
        (
            lambda refs, known: known["images"].pop(0),
            r"references \(ref_id\) name an image .*: 0, 1",
        ),
        (
            lambda refs, known: known["images"].append(known["images"][2]),
            r"1 image ids are twice in instances\.json: 3; fetch it again",
        ),
        (
            lambda refs, known: known["annotations"].append(known["annotations"][0]),
            r"1 annotation ids are twice in instances\.json: 1",
        ),
        (lambda refs, known: refs[4].update(ref_id=2), r"1 ref_ids are there twice: 2;"),
        (
            lambda refs, known: refs[1]["sentences"][0].update(sent_id=0),
            r"1 sent_ids are there twice: 0;",
        ),
        (
            lambda refs, known: refs[3].update(sentences=[]),
            r"1 references \(ref_id\) have no sentence: 3;",
        ),
        (lambda refs, known: refs[0].pop("ann_id"), "not in RefCOCO's format: KeyError 'ann_id'"),
        (lambda refs, known: known.pop("images"), "not in RefCOCO's format: KeyError 'images'"),
    ],
)
def test_files_that_contradict_themselves(
    folder: Path, tmp_path: Path, change: Callable[..., None], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_split(changed(folder, tmp_path, change), "train")


def test_masks_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    def change(references: list[dict[str, Any]], instances: dict[str, Any]) -> None:
        first, second, third = instances["annotations"][:3]
        size = first["segmentation"]["size"]
        first["segmentation"] = {"size": size, "counts": [size[0] * size[1]]}
        second["segmentation"] = {"size": [size[1], size[0]], "counts": [size[0] * size[1] - 1, 1]}
        third["segmentation"] = [[1.0, 2.0]]

    image = read_split(changed(folder, tmp_path, change), "train")[0]
    for item, message in zip(
        image.objects,
        (r"reference 0 \(scene_train_000000\.jpg\): the mask is empty", "mask is", "not polygons"),
        strict=False,
    ):
        with pytest.raises(DataError, match=message):
            image.mask(item)


@pytest.mark.parametrize(
    "place",
    ["data/images", "data/train2014", "data/images/train2014", "images/mscoco/images/train2014"],
)
def test_pictures_are_found_in_the_usual_places(folder: Path, tmp_path: Path, place: str) -> None:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    for name in ("refs(unc).p", "instances.json"):
        (root / name).write_bytes((folder / name).read_bytes())
    split = read_split(root, "val")
    assert len(missing_pictures(image.path for image in split)) == 3
    with pytest.raises(DataError, match=r"3 of 3 pictures are missing in .*data/images: scene_val"):
        require_pictures(image.path for image in split)
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for image in read_split(folder, "val") + read_split(folder, "train"):
        (tmp_path / place / image.path.name).write_bytes(image.path.read_bytes())
    for found in (read_split(root, "val"), read_split(root, "val", images=tmp_path / place)):
        assert {image.path.parent for image in found} == {tmp_path / place}
        require_pictures(image.path for image in found)


def test_coco_pictures_come_with_their_address() -> None:
    with pytest.raises(DataError, match=r"1 of 1 .*train2014\.zip"):
        require_pictures([Path("nowhere/COCO_train2014_000000000009.jpg")])


def test_every_kind_of_segmentation() -> None:
    wanted = np.zeros((8, 10), bool)
    wanted[2:6, 3:7] = True
    polygon = [[3.0, 2.0, 7.0, 2.0, 7.0, 6.0, 3.0, 6.0]]
    # Column by column: 3 empty columns and 2 rows, then 4 of 8 in each of 4 columns.
    runs = {"size": [8, 10], "counts": [26, 4, 4, 4, 4, 4, 4, 4, 26]}
    assert np.array_equal(decode_segmentation(polygon, 8, 10, "x"), wanted)
    assert np.array_equal(decode_segmentation(runs, 8, 10, "x"), wanted)
    with pytest.raises(DataError, match="belong together"):
        decode_segmentation({"size": [2, 2], "counts": b"04"}, 8, 10, "x")
    with pytest.raises(DataError, match="not polygons"):
        decode_segmentation("circle", 8, 10, "x")


def test_an_object_of_several_polygons_is_all_of_them() -> None:
    """As COCO cuts what something stands in front of; where two overlap it is one object still."""
    squares = [(1, 1, 3, 3), (6, 2, 9, 5), (8, 4, 10, 7)]
    polygons = [[float(at) for at in (x, y, u, y, u, v, x, v)] for x, y, u, v in squares]
    wanted = np.zeros((8, 12), bool)
    for left, top, right, bottom in squares:
        wanted[top:bottom, left:right] = True
    assert np.array_equal(decode_segmentation(polygons, 8, 12, "x"), wanted)
    assert wanted.sum() == 4 + 9 + 6 - 1


def endless() -> list[Any]:
    """Sixty lists, each of which holds the one before twice: small, and 2^60 to write out."""
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda refs: refs[0].update(split=endless()), "reference 0: split is a list"),
        (lambda refs: refs[1].update(ann_id=(1, 2)), "1: ann_id is a tuple, expected int"),
        (lambda refs: refs[0].update(ref_id=float("inf")), "reference 0: ref_id is a float"),
        (lambda refs: refs[0].update(sentences=["x"]), "a sentence of reference 0 is a str"),
        (
            lambda refs: refs[0]["sentences"][0].update(sent=endless()),
            "a sentence of reference 0: sent is a list, expected str",
        ),
    ],
)
def test_references_of_other_types(
    folder: Path, tmp_path: Path, change: Callable[..., None], message: str
) -> None:
    path = changed(folder, tmp_path, lambda refs, known: change(refs))
    with pytest.raises(DataError, match=message):
        read_split(path, "train")


def test_json_that_is_nested_too_deep(folder: Path, tmp_path: Path) -> None:
    path = changed(folder, tmp_path, lambda refs, known: None)
    (path / "instances.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"instances\.json cannot be read"):
        read_split(path, "train")


def test_a_name_that_no_file_can_have(folder: Path, tmp_path: Path) -> None:
    def change(references: list[dict[str, Any]], instances: dict[str, Any]) -> None:
        for image in instances["images"]:
            image["file_name"] = "x" * 5000

    with pytest.raises(DataError, match="File name too long"):
        read_split(changed(folder, tmp_path, change), "train")


NEAR = [[3.0, 2.0, 7.0, 2.0, 7.0, 6.0]]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1e300, 1e300, -1e300, 2.0, 3.0, 4.0]], "far outside"),  # ended the process
        ([[1e9, 1e9, -1e9, 2.0, 3.0, 4.0]], "far outside"),  # this, too
        ([[math.nan] * 6], "is no number"),
        ([["1"] * 6], "is no number"),
        ([[1, 1, 5, 5]], "three or more corners"),  # a box to pycocotools
        ([[0, 0, 9, 7] * 200_000], "outline is longer"),
        ([*NEAR, None], "three or more corners"),
        ({"size": [8, 10], "counts": [0.5]}, "do not fill"),  # left what was in memory
        ({"size": [8, 10], "counts": [40]}, "do not fill"),
        ({"size": [8, 10], "counts": "1"}, "do not fill"),
        ({"size": [8, 10], "counts": [90, -10]}, "do not fill"),
        ({"size": [8, 10], "counts": "o"}, "cut off"),
        ({"size": [8, 10], "counts": "oooooooo1"}, "do not have"),
        ({"size": [8, 10], "counts": "\x7f"}, "do not have"),
        ({"size": [8, 10], "counts": "é"}, "not polygons or run lengths"),
        ({"size": [8, True], "counts": [80]}, "size is not"),
        ({"size": [10, 8], "counts": [80]}, "belong together"),
    ],
)
def test_segmentations_that_pycocotools_would_not_survive(segmentation: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_segmentation(segmentation, 8, 10, "x")


@pytest.mark.parametrize("side", [0, -1, 10**5, 10**9])
def test_a_picture_that_no_memory_holds(side: int) -> None:
    """With room for 10^5 x 10^5 pixels that it did not get, pycocotools ended the process."""
    with pytest.raises(DataError, match="pixels"):
        decode_segmentation({"size": [side, side], "counts": [1]}, side, side, "x")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_compressed_runs_of_any_mask(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    assert np.array_equal(decode_segmentation(rle, height, width, "x"), mask)
    rle["counts"] = rle["counts"].decode()
    assert np.array_equal(decode_segmentation(rle, height, width, "x"), mask)
