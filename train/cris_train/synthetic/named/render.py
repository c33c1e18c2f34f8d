"""Drawing of named scenes: cut-outs on a photograph, lit, with shadows; what is visible then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from cris_train.synthetic.named.pictures import Pictures, repainted
from cris_train.synthetic.named.scenes import Layout, Placed

SOLID: Final = 0.5  # coverage from which a pixel belongs to a thing
SHADE: Final = 0.18  # how much a thing may be lighter on its lit side


@dataclass(frozen=True)
class Drawing:
    """A drawn scene.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        masks: (n, H, W) bool, the visible part of each thing, in the layout's order.
        whole: (n, H, W) bool, each thing as if nothing stood before it.
    """

    image: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]
    whole: npt.NDArray[np.bool_]


def render(
    rng: np.random.Generator,
    layout: Layout,
    behind: npt.NDArray[np.uint8],
    pictures: Pictures,
) -> Drawing:
    """Draw `layout` on the picture `behind` (H, W, 3); later things stand before earlier ones."""
    canvas = behind.astype(np.float32)
    count, size = len(layout.placed), (layout.height, layout.width)
    masks = np.zeros((count, *size), np.bool_)
    whole = np.zeros((count, *size), np.bool_)
    angle = float(rng.uniform(0.0, 2.0 * np.pi))
    light = np.array([np.cos(angle), -abs(np.sin(angle))])  # from above, or from a side
    warmth = rng.uniform(0.9, 1.1, 3).astype(np.float32)
    darkness, reach = float(rng.uniform(0.0, 0.5)), float(rng.uniform(0.03, 0.14))
    for index, placed in enumerate(layout.placed):
        offset = -light * reach * placed.diameter
        window = _window(placed, float(np.hypot(*offset)), size)
        part = canvas[window.rows, window.columns]
        colour, alpha = _warped(placed, pictures, window)
        _cast_shadow(part, alpha, offset, darkness)
        ramp = _ramp(placed, light, window) * float(rng.uniform(0.0, SHADE))
        gain = float(rng.uniform(0.82, 1.08))
        covered = alpha[..., None]
        lit = colour * (warmth * gain) + covered * (127.5 * ramp[..., None])
        part *= 1.0 - covered
        part += np.clip(lit, 0.0, covered * 255.0)
        solid = alpha >= SOLID
        masks[:index, window.rows, window.columns] &= ~solid
        masks[index, window.rows, window.columns] = solid
        whole[index, window.rows, window.columns] = solid
    grain = rng.normal(0.0, rng.uniform(0.0, 5.0), size).astype(np.float32)
    image = np.clip(canvas + grain[..., None] + 0.5, 0, 255).astype(np.uint8)
    return Drawing(image, masks, whole)


@dataclass(frozen=True)
class _Window:
    """The part of a picture that drawing a thing touches."""

    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def _window(placed: Placed, shadow: float, size: tuple[int, int]) -> _Window:
    """Room for the thing, however it is turned, and for its shadow and the shadow's blur."""
    radius = 0.75 * placed.diameter + 2.0 * shadow + 4.0
    y0, x0 = max(0, int(placed.y - radius)), max(0, int(placed.x - radius))
    y1 = min(size[0], int(placed.y + radius) + 1)
    x1 = min(size[1], int(placed.x + radius) + 1)
    return _Window(slice(y0, y1), slice(x0, x1))


def _warped(
    placed: Placed, pictures: Pictures, window: _Window
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Premultiplied colour (h, w, 3), 0..255, and coverage (h, w), 0..1, in its window."""
    cutout = pictures.cutout(placed.code)
    if placed.mirrored:
        cutout = cutout[:, ::-1]
    scale = placed.diameter / max(cutout.shape[:2])
    # Shrunk by area first: a linear warp alone would skip pixels.
    small = cv2.resize(
        np.ascontiguousarray(cutout), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA
    )
    if placed.paint is not None:
        small = repainted(small, placed.paint)
    alpha = small[..., 3:].astype(np.float32) / 255.0
    rich = np.concatenate([small[..., :3] * alpha, alpha], axis=2)
    height, width = small.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), placed.tilt, 1.0)
    turn[0, 2] += placed.x - window.columns.start - width / 2
    turn[1, 2] += placed.y - window.rows.start - height / 2
    warped = cv2.warpAffine(rich, turn, window.shape[::-1], flags=cv2.INTER_LINEAR)
    return warped[..., :3], warped[..., 3]


def _cast_shadow(
    part: npt.NDArray[np.float32],
    alpha: npt.NDArray[np.float32],
    offset: npt.NDArray[np.float64],
    darkness: float,
) -> None:
    """Darken what lies beside a thing, away from the light."""
    if darkness < 0.05:
        return
    move = np.array([[1.0, 0.0, offset[0]], [0.0, 1.0, offset[1]]])
    shadow = cv2.warpAffine(alpha, move, alpha.shape[::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), 1.0 + 0.35 * float(np.hypot(*offset)))
    part *= 1.0 - darkness * shadow[..., None]


def _ramp(
    placed: Placed, light: npt.NDArray[np.float64], window: _Window
) -> npt.NDArray[np.float32]:
    """From -1 on a thing's dark side to 1 on its lit side, (h, w)."""
    rows = np.arange(window.rows.start, window.rows.stop, dtype=np.float32)[:, None]
    columns = np.arange(window.columns.start, window.columns.stop, dtype=np.float32)[None, :]
    y, x = (rows - placed.y) / placed.diameter, (columns - placed.x) / placed.diameter
    return np.asarray(np.clip(2.0 * (light[0] * x + light[1] * y), -1.0, 1.0), np.float32)
