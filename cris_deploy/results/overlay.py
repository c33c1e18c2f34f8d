"""Masks drawn onto their picture: a tint, a contour that shows on any background, a legend."""

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

_TINT = 0.45
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
    thickness = max(1, round(min(height, width) / 320))
    for mask, tint in zip(masks, colours, strict=True):
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        # Light on dark on colour: one of the three differs from whatever lies behind.
        for line, width_of_line in ((_DARK, 5), (_LIGHT, 3), (tint, 1)):
            cv2.drawContours(picture, contours, -1, line, thickness * width_of_line, cv2.LINE_AA)
    return picture


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
