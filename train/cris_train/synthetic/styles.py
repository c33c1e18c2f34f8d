"""How generated scenes look: the palette and the ground of each style.

What an expression says of a scene is true in every style: names of colours and shapes mean the
same, and only what they look like differs. So a model that knows one style can be tuned to another.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from cris_train.synthetic.scenes import Colour

Span: TypeAlias = tuple[float, float]
"""Lowest and highest value of a uniform draw."""

Palette: TypeAlias = Mapping[Colour, tuple[Span, Span, Span]]
"""Hue (fraction of the circle), saturation and value of each colour. Gaps keep the names apart."""


class Style(StrEnum):
    """PLAIN: strong colours on muted grounds. CHALK: pale, grainy colours on a dark board."""

    PLAIN = "plain"
    CHALK = "chalk"


CHALK_PALETTE: Final[Palette] = {
    Colour.RED: ((-0.02, 0.01), (0.42, 0.55), (0.80, 0.95)),
    Colour.ORANGE: ((0.070, 0.085), (0.48, 0.60), (0.90, 1.0)),
    Colour.YELLOW: ((0.145, 0.165), (0.38, 0.50), (0.92, 1.0)),
    Colour.GREEN: ((0.31, 0.37), (0.28, 0.42), (0.72, 0.90)),
    Colour.BLUE: ((0.56, 0.61), (0.34, 0.50), (0.80, 0.98)),
    Colour.PURPLE: ((0.76, 0.81), (0.28, 0.42), (0.74, 0.92)),
    Colour.WHITE: ((0.0, 1.0), (0.0, 0.03), (0.94, 1.0)),
    Colour.BLACK: ((0.0, 1.0), (0.0, 0.20), (0.0, 0.05)),
}
CHALK_GRAIN: Final = 0.30  # share of its light that a stroke may lose


def board(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float32]:
    """A wiped board (H, W, 3) in 0..1: dark green to blue, with smudges along the wiping."""
    tone = np.array(
        colorsys.hsv_to_rgb(rng.uniform(0.36, 0.66), rng.uniform(0.2, 0.5), rng.uniform(0.17, 0.3)),
        np.float32,
    )
    cells = rng.random((int(rng.integers(3, 12)), int(rng.integers(2, 5))), np.float32)
    smudges = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    dust = 0.14 * float(rng.uniform(0.3, 1.0)) * smudges[..., None]
    return np.asarray(tone + dust, np.float32)


def grain(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float32]:
    """What chalk leaves of its colour, (h, w) in 0..1: short strokes across the shape."""
    noise = rng.random((height, width), np.float32)
    strokes = cv2.blur(noise, (1, 5) if rng.random() < 0.5 else (5, 1))
    return np.asarray(1.0 - CHALK_GRAIN * strokes, np.float32)
