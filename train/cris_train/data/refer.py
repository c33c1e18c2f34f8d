"""Reader of RefCOCO's published files: `refs(*).p` and `instances.json`, no conversion step."""

from __future__ import annotations

import io
import json
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image

from cris_deploy.errors import DataError
from cris_train.data.pictures import find_folder
from cris_train.data.segmentation import decode_segmentation

INSTANCES_FILE = "instances.json"
_REFERENCE: Final[Mapping[str, type]] = {
    **{"ref_id": int, "ann_id": int, "image_id": int},
    **{"split": str, "sentences": list},
}
_SENTENCE: Final[Mapping[str, type]] = {"sent_id": int, "sent": str}
# What Pillow raises for a file that is damaged, too large or no picture.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ReferObject:
    """One object that people refer to, and everything they said.

    Attributes:
        ref_id: Its number in the data set.
        segmentation: Polygons, run lengths or compressed run lengths as in instances.json, or the
            file of a mask (non-zero is the object).
        expressions: What was said, as published (lower case).
        sentence_ids: The number of each expression.
        origin: Where it was written down, for messages; its number if empty.
    """

    ref_id: int
    segmentation: Any
    expressions: tuple[str, ...]
    sentence_ids: tuple[int, ...]
    origin: str = ""


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
            DataError: it is empty, of another size, or cannot be read.
        """
        name = f"{item.origin or f'reference {item.ref_id}'} ({self.path.name})"
        if isinstance(item.segmentation, Path):
            mask = read_mask(item.segmentation, self.height, self.width, name)
        else:
            mask = decode_segmentation(item.segmentation, self.height, self.width, name)
        if not mask.any():
            raise DataError(f"{name}: the mask is empty: draw the object, or remove the reference")
        return mask


def read_split(
    root: str | Path, split: str, *, split_by: str = "unc", images: Path | None = None
) -> tuple[ReferImage, ...]:
    """Read one split of a data set in RefCOCO's format.

    Args:
        root: Folder with `refs(<split_by>).p` and `instances.json`.
        split: "train", "val", "testA", ...
        split_by: Who made the splits: "unc", "umd" or "google".
        images: Folder of the pictures; if not given, they are looked for in the usual places.

    Returns:
        The pictures of the split, in the order of their first reference. Their files are looked at
        only when they are used.

    Raises:
        DataError: a file is missing, unreadable, of another format, holds code, or contradicts
            itself; or the split is empty.
    """
    return pick(read_splits(root, split_by=split_by, images=images), split, Path(root))


def read_splits(
    root: str | Path, *, split_by: str = "unc", images: Path | None = None
) -> dict[str, tuple[ReferImage, ...]]:
    """Read all splits; as `read_split`."""
    root = Path(root)
    path = root / refs_name(split_by)
    references = load_references(path)
    instances = load_json(root / INSTANCES_FILE)
    try:
        faults = find_faults(references, instances)
        if faults:
            more = f" (and {len(faults) - 1} more faults: cris-data check)" if faults[1:] else ""
            raise DataError(f"{path}: {faults[0]}{more}")
        return _group(root, references, instances, images)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
        reason = getattr(error, "strerror", None) or error  # a name that no file can have
        raise DataError(
            f"{root} is not in RefCOCO's format: {type(error).__name__} {reason}; "
            "use the published refs and instances files unchanged"
        ) from error


def pick(
    splits: Mapping[str, tuple[ReferImage, ...]], split: str, root: Path
) -> tuple[ReferImage, ...]:
    """A split by its name.

    Raises:
        DataError: there is none of that name.
    """
    if split not in splits:
        known = ", ".join(splits) or "none at all"
        raise DataError(
            f"{root} has no references in split {split!r}: it has {known}; choose from these "
            "(train_split and val_split of a recipe, --split of cris-eval), or add one"
        )
    return splits[split]


def refs_name(split_by: str) -> str:
    """Name of the file of references."""
    return f"refs({split_by}).p"


def _group(
    root: Path,
    references: Sequence[Mapping[str, Any]],
    instances: Mapping[str, Any],
    images: Path | None,
) -> dict[str, tuple[ReferImage, ...]]:
    known = {entry["id"]: entry for entry in instances["images"]}
    annotations = {entry["id"]: entry for entry in instances["annotations"]}
    grouped: dict[str, dict[int, list[ReferObject]]] = {}
    for reference in references:
        sentences = reference["sentences"]
        item = ReferObject(
            int(reference["ref_id"]),
            annotations[reference["ann_id"]]["segmentation"],
            tuple(str(sentence["sent"]) for sentence in sentences),
            tuple(int(sentence["sent_id"]) for sentence in sentences),
        )
        pictures = grouped.setdefault(str(reference["split"]), {})
        pictures.setdefault(reference["image_id"], []).append(item)
    first = str(known[references[0]["image_id"]]["file_name"]) if references else ""
    folder = find_folder(root, first, images)
    return {
        split: tuple(
            ReferImage(
                folder / known[number]["file_name"],
                int(known[number]["height"]),
                int(known[number]["width"]),
                tuple(objects),
            )
            for number, objects in pictures.items()
        )
        for split, pictures in grouped.items()
    }


def find_faults(
    references: Sequence[Mapping[str, Any]], instances: Mapping[str, Any]
) -> tuple[str, ...]:
    """What contradicts itself, one sentence a kind: ids twice, references that lead nowhere.

    Raises:
        KeyError, TypeError: they are not in RefCOCO's format.
    """
    images = [entry["id"] for entry in instances["images"]]
    annotations = [entry["id"] for entry in instances["annotations"]]
    numbers = [reference["ref_id"] for reference in references]
    sentences = [said["sent_id"] for reference in references for said in reference["sentences"]]
    known_images, known_annotations = set(images), set(annotations)
    same = "use refs and instances.json of one download"
    found = (
        (_twice(images), "image ids are twice in instances.json", "fetch it again"),
        (_twice(annotations), "annotation ids are twice in instances.json", "fetch it again"),
        (_twice(numbers), "ref_ids are there twice", "fetch it again, or number them anew"),
        (_twice(sentences), "sent_ids are there twice", "fetch it again, or number them anew"),
        (
            [r["ref_id"] for r in references if r["ann_id"] not in known_annotations],
            "references (ref_id) name an annotation that instances.json does not have",
            same,
        ),
        (
            [r["ref_id"] for r in references if r["image_id"] not in known_images],
            "references (ref_id) name an image that instances.json does not have",
            same,
        ),
        (
            [r["ref_id"] for r in references if not r["sentences"]],
            "references (ref_id) have no sentence",
            "add one, or remove them",
        ),
    )
    return tuple(
        f"{len(wrong):,} {what}: {listed(wrong)}; {remedy}"
        for wrong, what, remedy in found
        if wrong
    )


def _twice(numbers: Sequence[Any]) -> list[Any]:
    return [number for number, count in Counter(numbers).items() if count > 1]


def listed(things: Sequence[object], most: int = 3) -> str:
    """The first few things as text."""
    dots = ", ..." if len(things) > most else ""
    return ", ".join(str(thing) for thing in things[:most]) + dots


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
    for number, entry in enumerate(content):
        _check_types(entry, f"{path}: reference {number}", _REFERENCE)
        for said in entry.get("sentences", ()):
            _check_types(said, f"{path}: a sentence of reference {number}", _SENTENCE)
    return content


def _check_types(entry: Any, name: str, types: Mapping[str, type]) -> None:
    """See that what is read of an entry is what it should be.

    In a pickle a list may hold another twice, sixty times over: it is small, and to write it out
    or to compare it takes for ever.
    """
    if not isinstance(entry, dict):
        raise DataError(f"{name} is a {type(entry).__name__}, expected dict")
    for key in types.keys() & entry.keys():  # one that is missing is said where it is read
        if not isinstance(entry[key], types[key]):
            raise DataError(
                f"{name}: {key} is a {type(entry[key]).__name__}, expected {types[key].__name__}; "
                "use the published file unchanged"
            )


class _PlainUnpickler(pickle._Unpickler):
    """Builds lists, dicts, tuples, text and numbers: these need no name to be looked up.

    In Python, which takes three times as long (0.6 s for 15,000 references of three sentences): the
    one in C makes room for as many values as a PUT's number says, gigabytes for twenty bytes. This
    one does so for a bytearray, which references do not have.
    """

    dispatch: ClassVar = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(
            f"the pickle asks for {module}.{name}, and a file of references holds plain data only; "
            "it may be malicious: do not open it by other means"
        )


def read_mask(path: Path, height: int, width: int, name: str) -> npt.NDArray[np.bool_]:
    """Read a mask file: non-zero is the object. (height, width) bool.

    Grey and palette pictures count by value (an index of 0 is background), colours by any channel;
    alpha is ignored.

    Raises:
        DataError: it cannot be read, or is of another size.
    """
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture)
            if picture.mode in ("LA", "PA", "RGBA"):
                values = values[:, :, :-1]
    except UNREADABLE as error:
        raise DataError(f"{name}: mask {path} cannot be read: {error}; save it again") from error
    mask = values.any(axis=2) if values.ndim == 3 else values != 0
    if mask.shape != (height, width):
        raise DataError(
            f"{name}: mask {path} is {mask.shape[1]}x{mask.shape[0]}, picture is "
            f"{width}x{height}: do they belong together?"
        )
    return np.asarray(mask)


def load_json(path: Path) -> Any:
    """A file of the data set; DataError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}; check the data folder") from error
