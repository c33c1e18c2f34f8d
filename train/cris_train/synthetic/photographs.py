"""Pictures that cost a decoder what photographs cost: for measuring, not for learning."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cris_deploy.errors import InputError
from cris_train.data.refer import INSTANCES_FILE, refs_name

# The size that COCO has most, in files of about 140 kB.
WIDTH, HEIGHT, QUALITY = 640, 480, 95
# Noise at every scale, finer ones weaker, as in photographs: cells across the picture, and levels.
OCTAVES = ((4, 60.0), (8, 40.0), (16, 26.0), (32, 17.0), (64, 12.0), (160, 10.0), (640, 6.0))
COLOUR = 0.25  # share of the noise that each channel has to itself
CORNERS = 24  # of an object's outline
REFERENCES_PROTOCOL = 2  # of REFER's own pickles


def write_photographs(out: Path, count: int, seed: int = 0) -> None:
    """Write `count` pictures with one polygon and one expression each, in RefCOCO's format.

    Raises:
        InputError: `out` cannot be written.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    images, annotations, references = [], [], []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        outline = _outline(rng)
        name = f"{number:06d}.jpg"
        path = str(out / "images" / name)
        if not cv2.imwrite(path, _picture(rng, outline), [cv2.IMWRITE_JPEG_QUALITY, QUALITY]):
            raise InputError(f"{path} cannot be written: check space and permissions")
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        annotations.append({"id": number, "segmentation": [outline.reshape(-1).tolist()]})
        references.append(
            {
                "ref_id": number,
                "ann_id": number,
                "image_id": number,
                "split": "train",
                "sentences": [{"sent": f"the bright thing number {number}", "sent_id": number}],
            }
        )
    instances = {"images": images, "annotations": annotations, "categories": []}
    (out / INSTANCES_FILE).write_text(json.dumps(instances), encoding="utf-8")
    (out / refs_name("unc")).write_bytes(pickle.dumps(references, REFERENCES_PROTOCOL))


def _outline(rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """A star-like polygon (CORNERS, 2) int32, (x, y) in pixels."""
    angle = np.linspace(0.0, 2.0 * np.pi, CORNERS, endpoint=False)
    radius = rng.uniform(40.0, 110.0) * rng.uniform(0.7, 1.3, CORNERS)
    x = rng.uniform(150.0, WIDTH - 150.0) + radius * np.cos(angle)
    y = rng.uniform(150.0, HEIGHT - 150.0) + radius * np.sin(angle)
    return np.asarray(np.rint(np.stack([x, y], axis=1)), np.int32)


def _picture(rng: np.random.Generator, outline: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """(HEIGHT, WIDTH, 3) uint8."""
    canvas = np.full((HEIGHT, WIDTH, 3), 110.0, np.float32)
    cv2.fillPoly(canvas, [outline], (150.0, 160.0, 170.0))
    for across, strength in OCTAVES:
        noise = rng.standard_normal((across * HEIGHT // WIDTH, across, 3), np.float32)
        grey = noise[:, :, :1]
        mixed = strength * ((1.0 - COLOUR) * grey + COLOUR * noise)
        canvas += cv2.resize(mixed, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    return np.clip(canvas, 0.0, 255.0).astype(np.uint8)
