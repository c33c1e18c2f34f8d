"""Picture sheets: masks beside the truth, with what was said and how well it was met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from cris_deploy.errors import InputError
from cris_deploy.files import write_whole
from cris_deploy.results import overlay
from cris_deploy.results.overlay import Colour

# Magenta is rare in pictures; it and sky blue are told apart by all kinds of colour vision.
MASK: Final[Colour] = (225, 20, 140)
TRUTH: Final[Colour] = (86, 200, 250)
PAPER: Final[Colour] = (255, 255, 255)
_INK: Final[Colour] = (25, 25, 25)
_GREY: Final[Colour] = (110, 110, 110)
_DARK: Final[Colour] = (20, 20, 20)

_TINT: Final = 0.5
_GAP: Final = 12  # pixels between tiles
_TITLE: Final = 44
_FONT_SIZE: Final = 17
_LINE: Final = 24  # pixels from one line of text to the next
_LINES: Final = 2  # of an expression; longer ones are cut
_JPEG_QUALITY: Final = 86


@dataclass(frozen=True)
class Tile:
    """One expression of one picture.

    Attributes:
        picture: (H, W, 3) uint8 RGB.
        expression: What was said.
        truth: (H, W) bool.
        mask: (H, W) bool, what was found.
        iou: Of the two, 0 to 1.
    """

    picture: npt.NDArray[np.uint8]
    expression: str
    truth: npt.NDArray[np.bool_]
    mask: npt.NDArray[np.bool_]
    iou: float


@dataclass(frozen=True)
class Scene:
    """One picture, and several expressions.

    Attributes:
        picture: (H, W, 3) uint8 RGB.
        found: Expressions, what was found, (H, W) bool, and its IoU, 0 to 1.
    """

    picture: npt.NDArray[np.uint8]
    found: tuple[tuple[str, npt.NDArray[np.bool_], float], ...]


def picture_sheet(
    tiles: Sequence[Tile], *, columns: int = 4, tile_width: int = 320, title: str = ""
) -> npt.NDArray[np.uint8]:
    """Lay tiles out in rows: the picture, on it the mask (tinted) and the truth (outlined).

    Args:
        tiles: At least one.
        columns: Tiles in a row, at most.
        tile_width: Pixels; pictures are scaled to fit a square of this side.
        title: Stands above, beside the legend.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        InputError: there is no tile, or a mask has another size than its picture.
    """
    drawn = [_tile(tile, tile_width) for tile in tiles]
    legend = (("mask", MASK), ("truth", TRUTH))
    return _laid_out(drawn, columns, tile_width, title, legend)


def scene_sheet(
    scenes: Sequence[Scene], *, columns: int = 4, tile_width: int = 320, title: str = ""
) -> npt.NDArray[np.uint8]:
    """Lay pictures out in rows, each with its masks, below it what was said in their colours.

    Args, result and errors are those of `picture_sheet`.
    """
    drawn = [_scene(scene, tile_width) for scene in scenes]
    return _laid_out(drawn, columns, tile_width, title, ())


def _laid_out(
    drawn: Sequence[npt.NDArray[np.uint8]],
    columns: int,
    tile_width: int,
    title: str,
    legend: Sequence[tuple[str, Colour]],
) -> npt.NDArray[np.uint8]:
    if not drawn:
        raise InputError("tiles is empty: a sheet needs at least one")
    if columns < 1 or tile_width < 32:
        raise InputError(f"columns is {columns}, tile_width {tile_width}: give at least 1 and 32")
    columns = min(columns, len(drawn))
    rows = []
    for start in range(0, len(drawn), columns):
        row = drawn[start : start + columns]
        height = max(len(tile) for tile in row)
        rows.append(np.hstack([_padded(tile, height + _GAP, tile_width + _GAP) for tile in row]))
    width = columns * (tile_width + _GAP) + _GAP
    margined = [_padded(row, len(row), width, left=_GAP) for row in rows]
    return np.vstack([_header(title, width, legend), *margined])


def write_sheet(path: Path, sheet: npt.NDArray[np.uint8]) -> Path:
    """Write a sheet as PNG or JPEG, as `path` ends; it appears whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if path.suffix == ".jpg" else []
    encoded = cv2.imencode(path.suffix, sheet[:, :, ::-1], quality)[1]  # OpenCV writes BGR
    return write_whole(path, encoded.tobytes())


def _tile(tile: Tile, side: int) -> npt.NDArray[np.uint8]:
    """The picture with its masks, its text below: (h, w <= side, 3)."""
    named = (
        (f"{n} of {tile.expression!r}", m) for n, m in (("mask", tile.mask), ("truth", tile.truth))
    )
    picture, (mask, truth) = _fitted(tile.picture, list(named), side)
    mixed = picture[mask] * (1 - _TINT) + np.array(MASK, np.float32) * _TINT
    picture[mask] = np.rint(mixed).astype(np.uint8)
    # Dark below colour: the line shows on any background, and the truth lies above the mask's.
    for region, colour, thickness in ((mask, MASK, 1), (truth, _DARK, 3), (truth, TRUTH, 2)):
        contours, _ = cv2.findContours(
            region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(picture, contours, -1, colour, thickness, cv2.LINE_AA)
    return np.vstack([_padded(picture, len(picture), side), _caption(tile, side)])


def _scene(scene: Scene, side: int) -> npt.NDArray[np.uint8]:
    """The picture with its masks, a line for each below it: (h, w <= side, 3)."""
    named = [(f"mask of {said!r}", mask) for said, mask, _ in scene.found]
    picture, masks = _fitted(scene.picture, named, side)
    colours = [overlay.colour(index) for index in range(len(masks))]
    lines = _blank(_LINE * len(masks) + 8, side)
    for row, ((said, _, iou), colour) in enumerate(zip(scene.found, colours, strict=True)):
        top, number = row * _LINE + 6, f"{100 * iou:.0f}"
        cv2.rectangle(lines, (0, top), (15, top + 15), colour, cv2.FILLED)
        _write(lines, number, side - _width(number), top + 14, _GREY)
        _write(lines, _cut(said, side - 32 - _width("100 ")), 24, top + 14, _INK)
    drawn = overlay.draw(picture, masks, colours)
    return np.vstack([_padded(drawn, len(drawn), side), lines])


def _fitted(
    picture: npt.NDArray[np.uint8], named: Sequence[tuple[str, npt.NDArray[np.bool_]]], side: int
) -> tuple[npt.NDArray[np.uint8], list[npt.NDArray[np.bool_]]]:
    """A picture and its masks, which are called as `named` says, scaled to a square's side."""
    height, width = picture.shape[:2]
    for name, mask in named:
        if mask.shape != (height, width):
            raise InputError(
                f"{name} is {mask.shape[1]}x{mask.shape[0]}, its picture {width}x{height}"
            )
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(picture, size, interpolation=way).astype(np.uint8)
    return small, [_scaled(mask, size, way) for _, mask in named]


def _scaled(mask: npt.NDArray[np.bool_], size: tuple[int, int], way: int) -> npt.NDArray[np.bool_]:
    share = cv2.resize(mask.astype(np.float32), size, interpolation=way)
    return np.asarray(share >= 0.5, np.bool_)


def _caption(tile: Tile, width: int) -> npt.NDArray[np.uint8]:
    strip = _blank(_LINE * (_LINES + 1) + 4, width)
    number = "IoU  -" if math.isnan(tile.iou) else f"IoU {100 * tile.iou:.1f}"
    _write(strip, number, 0, _LINE - 5, _GREY)
    for row, line in enumerate(_wrapped(tile.expression, width)):
        _write(strip, line, 0, _LINE * (row + 2) - 5, _INK)
    return strip


def _header(title: str, width: int, legend: Sequence[tuple[str, Colour]]) -> npt.NDArray[np.uint8]:
    strip = _blank(_TITLE, width)
    left = _GAP
    for text, colour in legend:
        box = (left, 14), (left + 16, 30)
        if colour is MASK:
            cv2.rectangle(strip, *box, tuple((255 + c) // 2 for c in colour), cv2.FILLED)
            cv2.rectangle(strip, *box, colour, 1)
        else:
            cv2.rectangle(strip, *box, _DARK, 3)
            cv2.rectangle(strip, *box, colour, 1)
        _write(strip, text, left + 24, 28, _INK)
        left += 24 + _width(text) + 24
    _write(strip, _cut(title, width - left - _GAP), left + 8, 28, _GREY)
    return strip


def _wrapped(text: str, width: int) -> list[str]:
    """At most `_LINES` lines that fit; the last is cut where it does not."""
    words, lines = " ".join(text[:500].split()).split(" "), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if _width(longer) > width and lines[-1] and len(lines) < _LINES:
            lines.append(word)
        else:
            lines[-1] = longer
    return [_cut(line, width) for line in lines]


def _cut(text: str, width: int) -> str:
    shown = text
    while text and _width(shown) > width:
        text = text[:-1]
        shown = text.rstrip() + "…"
    return shown


def _width(text: str) -> int:
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), _font(), _FONT_SIZE)
    return int(width)


def _write(
    strip: npt.NDArray[np.uint8], text: str, left: int, baseline: int, colour: Colour
) -> None:
    cv2.putText(strip, text, (left, baseline), colour, _font(), _FONT_SIZE)


def _font() -> cv2.FontFace:
    return cv2.FontFace("uni")  # OpenCV's own font with the most scripts


def _blank(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), PAPER, np.uint8)


def _padded(
    picture: npt.NDArray[np.uint8], height: int, width: int, left: int = 0
) -> npt.NDArray[np.uint8]:
    bottom, right = height - picture.shape[0], width - picture.shape[1] - left
    border = cv2.copyMakeBorder(picture, 0, bottom, left, right, cv2.BORDER_CONSTANT, value=PAPER)
    return np.asarray(border, np.uint8)
