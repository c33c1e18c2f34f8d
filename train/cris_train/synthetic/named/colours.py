"""Colour words, measured from pixels: what a pixel surely goes by, and what it might go by."""

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
STEP: Final = 4  # of hue (0..179), saturation and value in the tables: colours need no more


def colour_bits(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """What the pixels of (H, W, 3) RGB go by, (H, W) uint32.

    Bit k: surely by COLOURS[k]. Bit 16 + k: perhaps by COLOURS[k], as some people would say.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV) // STEP
    return np.asarray(_table()[hsv[..., 0], hsv[..., 1], hsv[..., 2]], np.uint32)


def shares(
    bits: npt.NDArray[np.uint32], mask: npt.NDArray[np.bool_]
) -> Mapping[str, tuple[float, float]]:
    """Colour -> shares of the mask's pixels that surely, and that perhaps, go by it."""
    # One column for each bit: (pixels, 32)
    columns = np.unpackbits(bits[mask].astype("<u4").view(np.uint8), bitorder="little")
    each = columns.reshape(-1, 32).mean(axis=0)
    return {c: (float(each[k]), float(each[16 + k])) for k, c in enumerate(COLOURS)}


@cache
def _table() -> npt.NDArray[np.uint32]:
    """The bits of every cell of hue, saturation and value, (45, 64, 64)."""
    h, s, v = np.meshgrid(
        (np.arange(45) + 0.5) * STEP * 2.0,  # degrees
        (np.arange(64) + 0.5) * STEP / 256.0,
        (np.arange(64) + 0.5) * STEP / 256.0,
        indexing="ij",
    )
    # What nobody would argue about; in between (tan, turquoise, violet red) lies no word's
    # ground. A cell has 8 degrees, so a bound takes or leaves 4 on either side of its middle.
    sure = {
        "red": ((h < 12) | (h > 340)) & (s > 0.62) & (v > 0.42),
        "orange": (h > 17) & (h < 41) & (s > 0.55) & (v > 0.80),
        "yellow": (h > 44) & (h < 66) & (s > 0.40) & (v > 0.75),
        "green": (h > 88) & (h < 164) & (s > 0.25) & (v > 0.22),
        "blue": (h > 184) & (h < 250) & (s > 0.30) & (v > 0.25),
        "purple": (h > 256) & (h < 298) & (s > 0.18) & (v > 0.25),
        "pink": (((h > 302) & (h < 332)) | (((h >= 332) | (h < 14)) & (s < 0.55)))
        & ((s > 0.20) & (v > 0.70)),
        "brown": ((h < 42) | (h > 350)) & (s > 0.22) & (v < 0.62) & (v > 0.22),
        "black": v < 0.20,
        "grey": (s < 0.16) & (v > 0.28) & (v < 0.74),
        "white": (s < 0.16) & (v >= 0.82),
    }
    perhaps = {
        "red": ((h < 22) | (h > 318)) & (s > 0.40) & (v > 0.28),
        "orange": (h > 8) & (h < 50) & (s > 0.35) & (v > 0.55),
        "yellow": (h > 36) & (h < 80) & (s > 0.22) & (v > 0.55),
        "green": (h > 60) & (h < 184) & (s > 0.12) & (v > 0.14),
        "blue": (h > 164) & (h < 268) & (s > 0.14) & (v > 0.14),
        "purple": (h > 240) & (h < 316) & (s > 0.12) & (v > 0.14),
        "pink": ((h > 280) | (h < 26)) & (s > 0.10) & (v > 0.50),
        "brown": ((h < 54) | (h > 330)) & (s > 0.14) & (v < 0.78) & (v > 0.14),
        "black": v < 0.33,
        "grey": (s < 0.30) & (v > 0.18) & (v < 0.88),
        "white": (s < 0.30) & (v > 0.68),
    }
    table = np.zeros(h.shape, np.uint32)
    for shift, rules in ((0, sure), (16, perhaps)):
        for word, where in rules.items():
            table |= where.astype(np.uint32) << (shift + COLOURS.index(word))
    return table
