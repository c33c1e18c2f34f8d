"""Masks drawn onto their picture: a tint, an outline that shows on any picture, a legend."""

from collections.abc import Sequence
from typing import Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from cris_deploy.errors import InputError
from cris_deploy.pixels.image import Pixels

Colour: TypeAlias = tuple[int, int, int]

# RGB. Okabe and Ito's palette (2008), made for all kinds of colour vision, the strongest first.
PALETTE: Final[tuple[Colour, ...]] = (
    (230, 60, 20),
    (0, 114, 255),
    (0, 170, 110),
    (240, 228, 66),
    (204, 80, 180),
    (86, 200, 250),
    (240, 159, 0),
)

_TINT = 0.25
_DARK: Colour = (20, 20, 20)
_LIGHT: Colour = (255, 255, 255)
_STRIP: Colour = (32, 32, 32)
_FONT_SIZE = 16
_ROW = 26
_MINIMUM_WIDTH = 320


def colour(index: int) -> Colour:
    """Colour of the index-th mask of a picture; they repeat after seven."""
    return PALETTE[index % len(PALETTE)]


def draw(rgb: Pixels, masks: Sequence[NDArray[np.bool_]], colours: Sequence[Colour]) -> Pixels:
    """Draw (H, W) bool masks onto a copy of an (H, W, 3) uint8 RGB picture.

    All tints first, then all contours, so that a mask inside another one stays visible. Raises
    InputError if a mask has another size than the picture.
    """
    picture = rgb.copy()
    height, width = rgb.shape[:2]
    for mask, tint in zip(masks, colours, strict=True):
        if mask.shape != (height, width):
            raise InputError(
                f"image is {width} x {height}, the mask {mask.shape[1]} x {mask.shape[0]}: give "
                "the image that was segmented"
            )
        mixed = picture[mask] * (1 - _TINT) + np.array(tint, np.float32) * _TINT
        picture[mask] = np.rint(mixed).astype(np.uint8)
    unit = max(1.0, min(height, width) / 360)
    for mask, tint in zip(masks, colours, strict=True):
        _outline(picture, mask, tint, unit)
    return picture


def _outline(picture: Pixels, mask: NDArray[np.bool_], tint: Colour, unit: float) -> None:
    """A line of `tint` between light ones on a soft shadow: one of them shows on any picture.

    It is drawn by the distance from the mask's edge, without the stairs of a mask of pixels.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if not width:
        return
    margin = int(6 * unit) + 2
    inner = mask[y : y + height, x : x + width].astype(np.uint8)
    edged = np.pad(inner, margin)
    inside = cv2.distanceTransform(edged, cv2.DIST_L2, cv2.DIST_MASK_5)
    outside = cv2.distanceTransform(1 - edged, cv2.DIST_L2, cv2.DIST_MASK_5)
    distance = np.abs(cv2.GaussianBlur(outside - inside, (0, 0), 0.8 * unit))
    above, before = max(0, y - margin), max(0, x - margin)
    part = picture[above : y + height + margin, before : x + width + margin]
    distance = distance[above - y + margin :, before - x + margin :]  # without what lies beyond
    seen = distance[: part.shape[0], : part.shape[1], None]
    _mix(part, _DARK, 0.55 * np.clip(1 - seen / (5.5 * unit), 0, 1))
    _mix(part, _LIGHT, np.clip(2.9 * unit + 0.5 - seen, 0, 1))
    _mix(part, tint, np.clip(1.4 * unit + 0.5 - seen, 0, 1))


def _mix(picture: Pixels, tint: Colour, share: NDArray[np.float32]) -> None:
    """Replace `share` (h, w, 1), 0..1, of each pixel's colour."""
    mixed = picture + (np.array(tint, np.float32) - picture) * share
    picture[:] = np.rint(mixed)


def add_legend(rgb: Pixels, entries: Sequence[tuple[str, Colour]]) -> Pixels:
    """Append a strip below a picture with one row per text and colour; long texts are cut.

    A picture narrower than the strip's least width is padded on the right.
    """
    width = max(rgb.shape[1], _MINIMUM_WIDTH)
    strip = np.full((_ROW * len(entries) + 8, width, 3), _STRIP, np.uint8)
    font = cv2.FontFace("uni")  # OpenCV's own font with the most scripts
    for row, (text, tint) in enumerate(entries):
        top = 4 + row * _ROW
        cv2.rectangle(strip, (10, top + 5), (26, top + 21), tint, cv2.FILLED)
        fitted = _fit(" ".join(text.split()), width - 46, font)
        cv2.putText(strip, fitted, (36, top + 19), _LIGHT, font, _FONT_SIZE)
    padding = np.full((rgb.shape[0], width - rgb.shape[1], 3), _STRIP, np.uint8)
    return np.concatenate([np.concatenate([rgb, padding], axis=1), strip])


def _fit(text: str, width: int, font: cv2.FontFace) -> str:
    text = text[:500]
    shortened = text
    while text and cv2.getTextSize((0, 0), shortened, (0, 0), font, _FONT_SIZE)[2] > width:
        text = text[:-1]
        shortened = text.rstrip() + "…"
    return shortened
