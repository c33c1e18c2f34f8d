"""Generated scenes on disk, in RefCOCO's own file format, so that the real data path reads them.

OUT/refs(unc).p      pickled list of reference dicts, as REFER publishes them
OUT/instances.json   COCO: images, annotations (compressed RLE), categories
OUT/images/*.jpg
OUT/kinds.json       beside the format: sentence id -> what the sentence needs (plain, size, ...)
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from cris_deploy.errors import InputError
from cris_train.synthetic.expressions import Description, describe
from cris_train.synthetic.made import MadeScene, Maker
from cris_train.synthetic.render import render
from cris_train.synthetic.scenes import Scene, Shape, draw_scene, scene_rng
from cris_train.synthetic.styles import Style

SPLIT_BY = "unc"
REFS_FILE = f"refs({SPLIT_BY}).p"
INSTANCES_FILE = "instances.json"
KINDS_FILE = "kinds.json"
IMAGES_FOLDER = "images"

# Longer side in pixels and shorter over longer side: the letterbox then scales and pads as it does
# with photographs.
LONG_SIDE = (200, 400)
ASPECT = (0.70, 1.0)
JPEG_QUALITY = 92

_SHAPES = tuple(Shape)


@dataclass(frozen=True)
class _WrittenObject:
    category: int
    rle: Mapping[str, Any]
    bbox: tuple[float, ...]
    area: int
    descriptions: tuple[Description, ...]


@dataclass(frozen=True)
class _WrittenScene:
    file_name: str
    width: int
    height: int
    objects: tuple[_WrittenObject, ...]


def split_scene(seed: int, split: str, index: int) -> tuple[Scene, np.random.Generator]:
    """Scene `index` of a split, and the generator that goes on to draw its sentences."""
    rng = scene_rng(seed, split, index)
    long_side = int(rng.integers(LONG_SIDE[0], LONG_SIDE[1] + 1))
    short_side = round(long_side * rng.uniform(*ASPECT))
    upright = rng.random() < 0.3
    width, height = (short_side, long_side) if upright else (long_side, short_side)
    return draw_scene(rng, width=width, height=height), rng


class ShapesMaker:
    """Makes scenes of coloured shapes, in one style."""

    categories = tuple(shape.value for shape in Shape)
    supercategory = "shape"

    def __init__(self, style: Style = Style.PLAIN) -> None:
        self._style = style

    def make(self, seed: int, split: str, index: int) -> MadeScene:
        """Scene `index` of a split."""
        scene, rng = split_scene(seed, split, index)
        drawing = render(scene, self._style)
        return MadeScene(
            image=drawing.image,
            masks=drawing.masks,
            categories=tuple(_SHAPES.index(item.shape) for item in scene.objects),
            descriptions=tuple(
                describe(scene, number, rng) for number in range(len(scene.objects))
            ),
        )


def write_scenes(
    out: Path,
    counts: Mapping[str, int],
    seed: int,
    *,
    workers: int = 1,
    maker: Maker | None = None,
) -> None:
    """Generate `counts[split]` scenes per split and write them to the folder `out`.

    `maker` says what is in them: coloured shapes if it is not given.

    The same seed gives the same files. Splits never share a scene: each scene has a random
    generator of its own, seeded with the seed, the split and its number.

    Raises:
        InputError: if `out` is not empty or a count is not positive.
    """
    if not counts or any(count < 1 for count in counts.values()):
        raise InputError(f"counts: {dict(counts)}: give at least 1 scene per split")
    maker = maker if maker is not None else ShapesMaker()
    if seed < 0:
        raise InputError(f"seed: {seed} is negative, give 0 or more")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder: choose another")
    (out / IMAGES_FOLDER).mkdir(parents=True, exist_ok=True)

    refs: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    kinds: dict[int, str] = {}
    for split, written in _generate(out / IMAGES_FOLDER, counts, seed, workers, maker):
        image_id = len(images) + 1
        images.append(
            {
                "id": image_id,
                "file_name": written.file_name,
                "width": written.width,
                "height": written.height,
            }
        )
        for item in written.objects:
            annotation_id = len(annotations) + 1
            annotations.append(
                {
                    "id": annotation_id,
                    "image_id": image_id,
                    "category_id": item.category,
                    "segmentation": item.rle,
                    "bbox": list(item.bbox),
                    "area": item.area,
                    "iscrowd": 0,
                }
            )
            if not item.descriptions:
                continue
            sentences = [
                {
                    "raw": description.text,
                    "sent": description.text,
                    "sent_id": len(kinds) + number,
                    "tokens": description.text.split(),
                }
                for number, description in enumerate(item.descriptions)
            ]
            for description in item.descriptions:  # sent_id counts on from len(kinds)
                kinds[len(kinds)] = description.kind.value
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": annotation_id,
                    "category_id": item.category,
                    "image_id": image_id,
                    "file_name": f"{Path(written.file_name).stem}_{annotation_id}.jpg",
                    "split": split,
                    "sent_ids": [sentence["sent_id"] for sentence in sentences],
                    "sentences": sentences,
                }
            )
    categories = [
        {"id": number, "name": name, "supercategory": maker.supercategory}
        for number, name in enumerate(maker.categories, start=1)
    ]
    instances = {
        "info": {"description": f"Generated referring scenes, seed {seed}"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    (out / INSTANCES_FILE).write_text(json.dumps(instances), encoding="utf-8")
    (out / KINDS_FILE).write_text(json.dumps(kinds), encoding="utf-8")
    # Protocol 2 is what REFER's own files have.
    (out / REFS_FILE).write_bytes(pickle.dumps(refs, protocol=2))


def _generate(
    folder: Path, counts: Mapping[str, int], seed: int, workers: int, maker: Maker
) -> Iterator[tuple[str, _WrittenScene]]:
    with ProcessPoolExecutor(workers) as pool:
        for split, count in counts.items():
            task = partial(_write_scene, folder, maker, seed, split)
            results = pool.map(task, range(count), chunksize=64)
            for written in tqdm(results, total=count, desc=f"{split} scenes", unit="scene"):
                yield split, written


def _write_scene(folder: Path, maker: Maker, seed: int, split: str, index: int) -> _WrittenScene:
    made = maker.make(seed, split, index)
    file_name = f"scene_{split}_{index:06d}.jpg"
    path = folder / file_name
    if not cv2.imwrite(str(path), made.image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
        raise InputError(f"{path} cannot be written: check space and permissions")
    objects = []
    for number, category in enumerate(made.categories):
        rle = coco_mask.encode(np.asfortranarray(made.masks[number], dtype=np.uint8))
        objects.append(
            _WrittenObject(
                category=category + 1,
                rle={"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
                bbox=tuple(coco_mask.toBbox(rle).tolist()),
                area=int(coco_mask.area(rle)),
                descriptions=made.descriptions[number],
            )
        )
    height, width = made.image.shape[:2]
    return _WrittenScene(file_name, width, height, tuple(objects))
