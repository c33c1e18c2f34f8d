"""Drawing of generated scenes: anti-aliased shapes on varied backgrounds, and their masks."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cris_train.synthetic.scenes import Colour, Scene, SceneObject, Shape
from cris_train.synthetic.styles import CHALK_PALETTE, Palette, Style, board, grain

SUPERSAMPLING = 4

_HSV: Palette = {
    Colour.RED: ((-0.015, 0.015), (0.85, 1.0), (0.75, 0.95)),
    Colour.ORANGE: ((0.070, 0.090), (0.90, 1.0), (0.92, 1.0)),
    Colour.YELLOW: ((0.145, 0.165), (0.80, 1.0), (0.90, 1.0)),
    Colour.GREEN: ((0.30, 0.38), (0.75, 1.0), (0.50, 0.80)),
    Colour.BLUE: ((0.59, 0.65), (0.75, 1.0), (0.65, 1.0)),
    Colour.PURPLE: ((0.76, 0.81), (0.60, 0.9), (0.55, 0.85)),
    Colour.WHITE: ((0.0, 1.0), (0.0, 0.03), (0.96, 1.0)),
    Colour.BLACK: ((0.0, 1.0), (0.0, 0.20), (0.0, 0.10)),
}


@dataclass(frozen=True)
class Drawing:
    """A drawn scene.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        masks: (n, H, W) bool, the visible part of each object in the scene's order.
    """

    image: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]


def render(scene: Scene, style: Style = Style.PLAIN) -> Drawing:
    """Draw `scene`; later objects cover earlier ones, and masks hold only what stays visible."""
    rng = np.random.default_rng(scene.paint_seed)
    ground = board if style is Style.CHALK else _background
    canvas = ground(rng, scene.height, scene.width)
    masks = np.zeros((len(scene.objects), scene.height, scene.width), np.bool_)
    for index, item in enumerate(scene.objects):
        x0, y0, alpha = _coverage(item, scene.height, scene.width)
        height, width = alpha.shape
        window = (slice(y0, y0 + height), slice(x0, x0 + width))
        paint = _paint(rng, item.colour, height, width, style)
        canvas[window] += alpha[..., None] * (paint - canvas[window])
        solid = alpha >= 0.5
        masks[:index, window[0], window[1]] &= ~solid
        masks[index][window] = solid
    canvas += rng.normal(0.0, rng.uniform(0.0, 0.02), canvas.shape[:2]).astype(np.float32)[
        ..., None
    ]
    image = np.clip(canvas * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return Drawing(image, masks)


def outline(shape: Shape) -> npt.NDArray[np.float64]:
    """Corner points (k, 2) of a shape of diameter 1 about the origin, x right, y down."""
    turn = 2.0 * np.pi
    if shape is Shape.CIRCLE:
        angle = np.linspace(0.0, turn, 64, endpoint=False)
        return 0.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if shape is Shape.SQUARE:
        return 0.46 * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    if shape is Shape.TRIANGLE:
        return np.array([[0.0, -0.5], [0.5, 0.42], [-0.5, 0.42]])
    if shape is Shape.STAR:
        angle = -turn / 4 + np.arange(10) * turn / 10
        radius = np.where(np.arange(10) % 2 == 0, 0.54, 0.24)
        star = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return np.asarray(star, np.float64)
    if shape is Shape.CROSS:
        a, b = 0.17, 0.5
        return np.array(
            [[-a, -b], [a, -b], [a, -a], [b, -a], [b, a], [a, a],
             [a, b], [-a, b], [-a, a], [-b, a], [-b, -a], [-a, -a]]
        )  # fmt: skip
    angle = np.linspace(0.0, turn, 64, endpoint=False)  # heart: a classic trigonometric curve
    x = 16 * np.sin(angle) ** 3
    y = 13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle)
    return np.stack([x, -y - 2.5], axis=1) / 32.0


def _coverage(
    item: SceneObject, height: int, width: int
) -> tuple[int, int, npt.NDArray[np.float32]]:
    """Top-left corner and coverage (h, w) in 0..1 of an object, clipped to the picture."""
    angle = np.deg2rad(item.tilt)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = item.diameter * outline(item.shape) @ turn.T + (item.x, item.y)
    low = np.maximum(np.floor(points.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, (width, height))
    w, h = (high - low).tolist()
    big = np.zeros((h * SUPERSAMPLING, w * SUPERSAMPLING), np.uint8)
    # fillPoly's integer coordinates are pixel centres: shift by half a (supersampled) pixel.
    corners = np.rint((points - low) * SUPERSAMPLING - 0.5).astype(np.int32)
    cv2.fillPoly(big, [corners], 255)
    small = cv2.resize(big, (w, h), interpolation=cv2.INTER_AREA)
    return int(low[0]), int(low[1]), small.astype(np.float32) / 255.0


def _paint(
    rng: np.random.Generator, colour: Colour, height: int, width: int, style: Style
) -> npt.NDArray[np.float32]:
    """A fill (h, w, 3) in 0..1: the colour, jittered, with a soft linear shade or with grain."""
    palette = CHALK_PALETTE if style is Style.CHALK else _HSV
    hue, saturation, value = (float(rng.uniform(*span)) for span in palette[colour])
    base = np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32)
    if style is Style.CHALK:
        shade = grain(rng, height, width)
    else:
        shade = 1.0 + _ramp(rng, height, width) * float(rng.uniform(0.0, 0.12))
    return np.asarray(np.clip(base * shade[..., None], 0.0, 1.0), np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float32]:
    """A muted background (H, W, 3) in 0..1: flat, gradient, clouds or stripes."""
    first, second = _muted(rng), _muted(rng)
    kind = int(rng.integers(4))
    if kind == 0:
        mix = np.zeros((height, width), np.float32)
    elif kind == 1:
        mix = 0.5 + 0.5 * _ramp(rng, height, width)
    elif kind == 2:
        cells = int(rng.integers(3, 9))
        noise = rng.random((cells, cells), np.float32)
        mix = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    else:
        mix = 0.5 + 0.5 * np.sin(_ramp(rng, height, width) * float(rng.uniform(8.0, 40.0)))
    mix = mix.astype(np.float32)[..., None]
    return np.asarray(first + mix * (second - first), np.float32)


def _muted(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, 0.22), rng.uniform(0.32, 0.75))
    return np.array(colour, np.float32)


def _ramp(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float32]:
    """A linear ramp (h, w) from -1 to 1 in a random direction."""
    angle = float(rng.uniform(0.0, 2.0 * np.pi))
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    ramp = np.cos(angle) * x + np.sin(angle) * y
    return np.asarray(ramp / (abs(np.cos(angle)) + abs(np.sin(angle))), np.float32)
