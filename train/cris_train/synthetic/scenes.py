"""Seeded layouts of generated referring scenes: which shape, colour and size lies where.

A scene is a list of objects in drawing order. `render.py` draws it, `expressions.py` describes its
objects without ambiguity, `scenes_to_refer.py` writes whole splits to disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np

from cris_deploy.errors import InputError


class Shape(StrEnum):
    """What an object is; the value is the noun that names it."""

    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    STAR = "star"
    CROSS = "cross"
    HEART = "heart"


class Colour(StrEnum):
    """An object's fill; the value is the adjective that names it."""

    RED = "red"
    ORANGE = "orange"
    YELLOW = "yellow"
    GREEN = "green"
    BLUE = "blue"
    PURPLE = "purple"
    WHITE = "white"
    BLACK = "black"


class Size(StrEnum):
    """An object's size class. MEDIUM is never spoken of: it is neither small nor large."""

    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


# Diameter as a fraction of the picture's shorter side. The gaps between the classes keep "small"
# and "large" free of doubtful cases.
DIAMETERS: dict[Size, tuple[float, float]] = {
    Size.SMALL: (0.15, 0.18),
    Size.MEDIUM: (0.22, 0.26),
    Size.LARGE: (0.32, 0.40),
}

MIN_OBJECTS, MAX_OBJECTS = 2, 6
MIN_SIDE = 64  # pixels; below this the small objects have too few pixels to be told apart
# Centres keep this multiple of the mean diameter apart: objects may touch and overlap a little.
SEPARATION = 0.84
PLACEMENT_TRIES = 40
TWIN_PROBABILITY = 0.7
MAX_TILT = 12.0  # degrees

_T = TypeVar("_T")


@dataclass(frozen=True)
class SceneObject:
    """One drawn object; lengths in pixels, x to the right, y down, tilt in degrees."""

    shape: Shape
    colour: Colour
    size: Size
    x: float
    y: float
    diameter: float
    tilt: float


@dataclass(frozen=True)
class Scene:
    """A layout: picture size in pixels, objects in drawing order, and the seed of its paint."""

    width: int
    height: int
    objects: tuple[SceneObject, ...]
    paint_seed: int

    @property
    def short_side(self) -> int:
        """Length in pixels that sizes and distances are relative to."""
        return min(self.width, self.height)


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of scene `index` of `split`: independent of every other scene and split."""
    return np.random.default_rng([seed, index, *split.encode()])


def draw_scene(
    rng: np.random.Generator, *, width: int, height: int, count: int | None = None
) -> Scene:
    """Draw a layout of 2 to 6 objects for a picture of `width` x `height` pixels.

    Colours and shapes come from small per-scene palettes, and most scenes hold a twin (same shape
    and colour as another object), so that plain names are often not enough.

    Raises:
        InputError: if a side is shorter than 64 pixels or `count` is not in 2..6.
    """
    if min(width, height) < MIN_SIDE:
        raise InputError(f"width, height: {width}x{height} is too small, give at least {MIN_SIDE}")
    if count is not None and not MIN_OBJECTS <= count <= MAX_OBJECTS:
        raise InputError(f"count: {count} is not in {MIN_OBJECTS}..{MAX_OBJECTS}")
    wanted = count if count is not None else int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    while True:
        objects = _place(rng, width, height, wanted)
        # A crowded start can leave no room. An exact `count` must be kept; otherwise fewer will do.
        if len(objects) == wanted or (count is None and len(objects) >= MIN_OBJECTS):
            return Scene(width, height, tuple(objects), int(rng.integers(2**31)))


def _place(rng: np.random.Generator, width: int, height: int, count: int) -> list[SceneObject]:
    shapes = _sample(rng, tuple(Shape), int(rng.integers(2, 5)))
    colours = _sample(rng, tuple(Colour), int(rng.integers(2, 5)))
    placed: list[SceneObject] = []
    twin_at = int(rng.integers(1, count)) if rng.random() < TWIN_PROBABILITY else -1
    for index in range(count):
        if index == twin_at and placed:
            model = placed[int(rng.integers(len(placed)))]
            shape, colour = model.shape, model.colour
        else:
            shape, colour = _choice(rng, shapes), _choice(rng, colours)
        size = _choice(rng, tuple(Size))
        diameter = float(rng.uniform(*DIAMETERS[size])) * min(width, height)
        spot = _free_spot(rng, width, height, diameter, placed)
        if spot is None:
            continue
        tilt = float(rng.uniform(-MAX_TILT, MAX_TILT))
        placed.append(SceneObject(shape, colour, size, *spot, diameter, tilt))
    return placed


def _free_spot(
    rng: np.random.Generator,
    width: int,
    height: int,
    diameter: float,
    placed: Sequence[SceneObject],
) -> tuple[float, float] | None:
    margin = 0.55 * diameter  # a tilted square reaches 0.6 diameters at its corners
    for _ in range(PLACEMENT_TRIES):
        x = float(rng.uniform(margin, width - margin))
        y = float(rng.uniform(margin, height - margin))
        if all(
            np.hypot(x - other.x, y - other.y) >= SEPARATION * (diameter + other.diameter) / 2
            for other in placed
        ):
            return x, y
    return None


def _choice(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _sample(rng: np.random.Generator, options: Sequence[_T], count: int) -> tuple[_T, ...]:
    return tuple(options[int(i)] for i in rng.permutation(len(options))[:count])
