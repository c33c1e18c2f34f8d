"""A user's own data: pictures, masks, and lines of JSON that say what is what.

    {"image": "images/desk.jpg", "mask": "masks/cup.png", "expression": "the red cup"}
    {"image": "images/desk.jpg", "mask": "masks/pen.png", "expressions": ["pen", "the left thing"],
     "split": "val"}

Every `*.jsonl` of the folder is read. Paths are relative to the folder. A mask is a picture (not
zero is the object) or COCO's run lengths, `{"size": [height, width], "counts": ...}`. A line
without "split" belongs to the split that its file is named after. Lines of the same picture, mask
and split are one object.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from cris_deploy.arguments import shown
from cris_deploy.errors import DataError
from cris_train.data.refer import UNREADABLE, ReferImage, ReferObject, listed

KEYS = ("image", "mask", "expression", "expressions", "split")


@dataclass(frozen=True)
class _Line:
    """One line, checked."""

    origin: str
    image: Path
    mask: Path | Mapping[str, Any]
    size: tuple[int, int]
    expressions: tuple[str, ...]
    split: str

    @property
    def object_key(self) -> str:
        """Equal for lines about the same object."""
        mask = self.mask
        return str(mask) if isinstance(mask, Path) else json.dumps(mask, sort_keys=True)


@dataclass
class _Picture:
    """What is known of a picture so far: its size, by whom, and its objects."""

    size: tuple[int, int]
    origin: str
    objects: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # origin, expression
    masks: dict[str, Any] = field(default_factory=dict)


def read_folder(root: Path, *, images: Path | None = None) -> dict[str, tuple[ReferImage, ...]]:
    """Read every split of a folder with `*.jsonl`.

    Args:
        root: The folder.
        images: What the images' paths are relative to; `root` if not given.

    Returns:
        Split -> pictures in the order of their first line. Picture files are looked at only when
        they are used; their size is their masks'.

    Raises:
        DataError: a line is unusable (file and number are named), a mask is absent, masks of one
            picture differ in size, or an expression is there twice.
    """
    splits: dict[str, dict[Path, _Picture]] = {}
    for path in sorted(root.glob("*.jsonl")):
        for line in _lines(path, root, images if images is not None else root):
            _add(splits.setdefault(line.split, {}), line)
    if not splits:
        raise DataError(f"{root}: its *.jsonl hold no line: write image, mask and expression")
    numbers, sentences = count(), count()
    return {
        split: tuple(
            _picture(path, picture, numbers, sentences) for path, picture in pictures.items()
        )
        for split, pictures in splits.items()
    }


def _picture(
    path: Path, picture: _Picture, numbers: Iterator[int], sentences: Iterator[int]
) -> ReferImage:
    objects = tuple(
        ReferObject(
            next(numbers),
            picture.masks[key],
            tuple(expression for _, expression in said),
            tuple(next(sentences) for _ in said),
            said[0][0],
        )
        for key, said in picture.objects.items()
    )
    return ReferImage(path, *picture.size, objects)


def _add(pictures: dict[Path, _Picture], line: _Line) -> None:
    picture = pictures.setdefault(line.image, _Picture(line.size, line.origin))
    if picture.size != line.size:
        raise DataError(
            f"{line.origin}: the mask is {line.size[1]}x{line.size[0]}, in {picture.origin} it is "
            f"{picture.size[1]}x{picture.size[0]} for the same picture: masks have its size"
        )
    key = line.object_key
    picture.masks[key] = line.mask
    said = picture.objects.setdefault(key, [])
    for expression in line.expressions:
        twice = next((origin for origin, other in said if other == expression), None)
        if twice is not None:
            raise DataError(
                f"{line.origin}: {shown(expression)} was said of this mask in {twice}: remove one"
            )
        said.append((line.origin, expression))


def _lines(path: Path, root: Path, images: Path) -> Iterator[_Line]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; save it as UTF-8 text") from error
    for number, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            yield _line(content, f"{path.name} line {number}", path.stem, root, images)


def _line(content: str, origin: str, split: str, root: Path, images: Path) -> _Line:
    try:
        entry = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{origin} is not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise DataError(f'{origin}: write one object, {{"image": ..., "mask": ..., ...}}')
    unknown = sorted(set(entry) - set(KEYS))
    if unknown:
        keys = listed([key[:60] for key in unknown])
        raise DataError(f"{origin}: unknown key {keys}; known: {', '.join(KEYS)}")
    image, named = entry.get("image"), entry.get("split", split)
    if not isinstance(image, str) or not image:
        raise DataError(f"{origin}: image is {shown(image)}: give the path of a picture")
    if not isinstance(named, str) or not named:
        raise DataError(f"{origin}: split is {shown(named)}: give a name such as train or val")
    mask, size = _mask(entry.get("mask"), origin, root)
    return _Line(origin, images / image, mask, size, _expressions(entry, origin), named)


def _expressions(entry: Mapping[str, Any], origin: str) -> tuple[str, ...]:
    if ("expression" in entry) == ("expressions" in entry):
        raise DataError(f"{origin}: give either expression (text) or expressions (a list of it)")
    said = entry["expressions"] if "expressions" in entry else [entry["expression"]]
    if not isinstance(said, list) or not said:
        raise DataError(f"{origin}: expressions is {shown(said)}: give a list of at least one")
    for expression in said:
        if not isinstance(expression, str) or not expression.strip():
            raise DataError(f"{origin}: expression is {shown(expression)}: give a text")
    return tuple(said)


def _mask(
    mask: object, origin: str, root: Path
) -> tuple[Path | Mapping[str, Any], tuple[int, int]]:
    """The mask as it is kept, and its (height, width)."""
    if isinstance(mask, str) and mask:
        path = root / mask
        try:
            with Image.open(path) as picture:  # the header only
                return path, (picture.height, picture.width)
        except FileNotFoundError:
            raise DataError(f"{origin}: mask {path} does not exist: check the path") from None
        except UNREADABLE as error:
            reason = getattr(error, "strerror", None) or error  # str(error) has the path once more
            raise DataError(f"{origin}: mask {path} cannot be read: {reason}") from error
    if isinstance(mask, dict) and set(mask) == {"size", "counts"}:
        size = mask["size"]
        if (
            isinstance(size, list)
            and len(size) == 2
            and all(isinstance(side, int) and side > 0 for side in size)
            and isinstance(mask["counts"], (str, list))
        ):
            return mask, (size[0], size[1])
    raise DataError(
        f"{origin}: mask is neither the path of a picture nor run lengths "
        '{"size": [height, width], "counts": ...}'
    )
