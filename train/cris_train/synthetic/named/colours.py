"""Colour words, measured from pixels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

COLOURS: Final = (
    *("red", "orange", "yellow", "green", "blue", "purple"),
    *("pink", "brown", "black", "grey", "white"),
)
UNNAMED: Final = len(COLOURS)
STEP: Final = 4  # of hue (0..179), saturation and value in the table: colours need no more


def name_pixels(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Name every pixel of (H, W, 3) RGB: index into COLOURS, or UNNAMED, (H, W) uint8."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV) // STEP
    named: npt.NDArray[np.uint8] = _table()[hsv[..., 0], hsv[..., 1], hsv[..., 2]]
    return named


def shares(named: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> Mapping[str, float]:
    """Colour -> share of the mask's pixels that go by it; those of no pixel are left out."""
    counts = np.bincount(named[mask], minlength=UNNAMED + 1)
    total = max(1, int(counts.sum()))
    return {c: int(n) / total for c, n in zip(COLOURS, counts, strict=False) if n}


@cache
def _table() -> npt.NDArray[np.uint8]:
    """The name of every cell of hue, saturation and value, (45, 64, 64) uint8.

    The ranges leave gaps where people disagree (tan, turquoise, violet red): these have no name.
    """
    h, s, v = np.meshgrid(
        (np.arange(45) + 0.5) * STEP * 2.0,  # degrees
        (np.arange(64) + 0.5) * STEP / 256.0,
        (np.arange(64) + 0.5) * STEP / 256.0,
        indexing="ij",
    )
    rules = {
        "grey": (s < 0.16) & (v > 0.28) & (v < 0.74),
        "white": (s < 0.16) & (v >= 0.82),
        "red": ((h < 14) | (h > 337)) & (s > 0.62) & (v > 0.42),
        "orange": (h > 17) & (h < 41) & (s > 0.55) & (v > 0.80),
        "yellow": (h > 43) & (h < 66) & (s > 0.40) & (v > 0.75),
        "green": (h > 78) & (h < 165) & (s > 0.25) & (v > 0.22),
        "blue": (h > 184) & (h < 250) & (s > 0.30) & (v > 0.25),
        "purple": (h > 256) & (h < 298) & (s > 0.18) & (v > 0.25),
        "pink": (((h > 302) & (h < 332)) | (((h >= 332) | (h < 14)) & (s < 0.55)))
        & (s > 0.20)
        & (v > 0.70),
        "brown": ((h < 42) | (h > 350)) & (s > 0.22) & (v < 0.62) & (v > 0.22),
        "black": v < 0.20,
    }
    table = np.full(h.shape, UNNAMED, np.uint8)
    for word, where in rules.items():  # the later one wins
        table[where] = COLOURS.index(word)
    return table
