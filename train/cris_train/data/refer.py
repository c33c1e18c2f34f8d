"""Reader of RefCOCO's published files: `refs(*).p` and `instances.json`, no conversion step."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from cris_deploy.errors import DataError


@dataclass(frozen=True)
class ReferObject:
    """One object that people refer to, and everything they said.

    Attributes:
        ref_id: Its number in the data set.
        segmentation: As in instances.json: polygons, run lengths or compressed run lengths.
        expressions: What was said, as published (lower case).
        sentence_ids: The number of each expression.
    """

    ref_id: int
    segmentation: Any
    expressions: tuple[str, ...]
    sentence_ids: tuple[int, ...]


@dataclass(frozen=True)
class ReferImage:
    """A picture, its sides in pixels, and the objects in it that were referred to."""

    path: Path
    height: int
    width: int
    objects: tuple[ReferObject, ...]

    def mask(self, item: ReferObject) -> npt.NDArray[np.bool_]:
        """The object's mask at image size, (H, W) bool.

        Raises:
            DataError: its segmentation is not polygons or run lengths of that size.
        """
        name = f"reference {item.ref_id}"
        return decode_segmentation(item.segmentation, self.height, self.width, name)


def read_split(
    root: str | Path, split: str, *, split_by: str = "unc", images: Path | None = None
) -> tuple[ReferImage, ...]:
    """Read one split of a data set in RefCOCO's format.

    Args:
        root: Folder with `refs(<split_by>).p` and `instances.json`.
        split: "train", "val", "testA", ...
        split_by: Who made the splits: "unc", "umd" or "google".
        images: Folder of the pictures; `root/images` if not given.

    Returns:
        The pictures of the split, in the order of their first reference. Their files are looked at
        only when they are used.

    Raises:
        DataError: a file is missing, unreadable, of another format, or holds code; or the split is
            empty.
    """
    root = Path(root)
    references = load_references(root / f"refs({split_by}).p")
    instances = _load_json(root / "instances.json")
    folder = images if images is not None else root / "images"
    try:
        known = {entry["id"]: entry for entry in instances["images"]}
        annotations = {entry["id"]: entry for entry in instances["annotations"]}
        grouped: dict[int, list[ReferObject]] = {}
        for reference in references:
            if reference["split"] != split:
                continue
            sentences = reference["sentences"]
            item = ReferObject(
                int(reference["ref_id"]),
                annotations[reference["ann_id"]]["segmentation"],
                tuple(str(sentence["sent"]) for sentence in sentences),
                tuple(int(sentence["sent_id"]) for sentence in sentences),
            )
            grouped.setdefault(reference["image_id"], []).append(item)
        pictures = tuple(
            ReferImage(
                folder / known[image_id]["file_name"],
                int(known[image_id]["height"]),
                int(known[image_id]["width"]),
                tuple(objects),
            )
            for image_id, objects in grouped.items()
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{root} is not in RefCOCO's format: {type(error).__name__} {error}; "
            "use the published refs and instances files unchanged"
        ) from error
    if not pictures:
        raise DataError(f"{root} has no references in split {split!r}: check the split's name")
    return pictures


def load_references(path: Path) -> list[Mapping[str, Any]]:
    """Read a `refs(*).p` file; only containers, text and numbers are let through.

    Raises:
        DataError: if it is missing, damaged, not a list of dicts, or names any class or function.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; check the data folder") from error
    try:
        # The published files were written by Python 2: its byte strings are ASCII.
        content = _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} is not a readable pickle: {error}; fetch it again") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise DataError(f"{path} does not hold a list of references: is it a refs(*).p file?")
    return content


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, dicts, tuples, text and numbers: these need no name to be looked up."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(
            f"the pickle asks for {module}.{name}, and a file of references holds plain data only; "
            "it may be malicious: do not open it by other means"
        )


def decode_segmentation(
    segmentation: Any, height: int, width: int, name: str
) -> npt.NDArray[np.bool_]:
    """COCO polygons, run lengths, or compressed run lengths to a mask (height, width) bool.

    Raises:
        DataError: if it is neither, or of another size.
    """
    try:
        if isinstance(segmentation, Sequence):
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            rle = coco_mask.frPyObjects(segmentation, height, width)
        else:
            rle = segmentation
        mask = coco_mask.decode(rle).astype(np.bool_)
    except Exception as error:  # pycocotools raises bare Exception
        raise DataError(f"{name}: segmentation is not polygons or run lengths: {error}") from error
    if mask.shape != (height, width):
        raise DataError(
            f"{name}: mask is {mask.shape[1]}x{mask.shape[0]}, picture is {width}x{height}: "
            "do instances.json and refs belong together?"
        )
    return np.asarray(mask)


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; check the data folder") from error
