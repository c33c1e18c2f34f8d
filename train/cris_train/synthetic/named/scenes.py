"""Layouts of named scenes: which thing stands where, how large, how turned, in which colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np

from cris_train.synthetic.named.names import Thing

_T = TypeVar("_T")

# Longer side in pixels and shorter over longer side: 256 is what training at 160 to 224 needs.
LONG_SIDE: Final = 256
ASPECT: Final = (0.70, 1.0)
UPRIGHT: Final = 0.3  # share of scenes that are taller than wide

MOST_OBJECTS: Final = 6
DIAMETERS: Final = (0.24, 0.56)  # of the shorter side
TILT: Final = 22.0  # degrees to either side
GROUP: Final = 0.55  # share of scenes with a group: two to four things of one name
IN_A_ROW: Final = 0.35  # share of groups that stand in a row
ONE_SECTION: Final = (
    0.45  # share of scenes whose things are all of one kind (animals, vehicles ...)
)
REPAINT: Final = 0.55  # share of things that come in any colour and are repainted
# The first lesson: an eighth of the names fills half of its scenes, so that a model finds out on a
# few names that words choose among things, before it learns the many.
FEW: Final = (2, 3)
FEW_DIAMETERS: Final = (0.38, 0.62)
COMMON: Final = 0.5
COMMON_EVERY: Final = 8
# Centres are at least so many mean diameters apart: below 1, things overlap.
SEPARATION: Final = 0.78
TRIES: Final = 30

PAINTS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white")


@dataclass(frozen=True)
class Placed:
    """A thing in a picture; lengths in pixels.

    Attributes:
        thing: Index in the list of things.
        code: Which of its pictures.
        x: Of its centre, from the left edge.
        y: Of its centre, from the top edge.
        diameter: The longer side of its picture.
        tilt: Degrees.
        mirrored: Left and right exchanged.
        paint: Colour that it is repainted in; None for its own.
    """

    thing: int
    code: str
    x: float
    y: float
    diameter: float
    tilt: float
    mirrored: bool
    paint: str | None


@dataclass(frozen=True)
class Layout:
    """A picture's sides in pixels, and its things from back to front."""

    width: int
    height: int
    placed: tuple[Placed, ...]

    @property
    def short_side(self) -> int:
        """Length in pixels that sizes and distances are relative to."""
        return min(self.width, self.height)

    def scaled(self, scale: float) -> Layout:
        """The same at another size."""
        placed = (
            replace(p, x=p.x * scale, y=p.y * scale, diameter=p.diameter * scale)
            for p in self.placed
        )
        return Layout(round(self.width * scale), round(self.height * scale), tuple(placed))


def draw_layout(rng: np.random.Generator, things: Sequence[Thing], usable: Sequence[int]) -> Layout:
    """Draw a layout of two to six things out of `usable` (indices into `things`)."""
    short = round(LONG_SIDE * rng.uniform(*ASPECT))
    upright = rng.random() < UPRIGHT
    width, height = (short, LONG_SIDE) if upright else (LONG_SIDE, short)
    wanted = int(rng.integers(2, MOST_OBJECTS + 1))
    pool = _pool(rng, things, usable)
    placed: list[Placed] = []
    if rng.random() < GROUP:
        placed += _group(rng, things, pool[0], width, height, min(wanted, int(rng.integers(2, 5))))
    scale = rng.uniform(0.75, 1.0) if wanted > 4 else 1.0
    while len(placed) < wanted:
        index = pick(rng, pool)
        diameter = scale * float(rng.uniform(*DIAMETERS)) * short
        spot = _free_spot(rng, width, height, diameter, placed)
        if spot is None:
            break
        placed.append(_thing(rng, things, index, *spot, diameter))
    order = rng.permutation(len(placed))
    return Layout(width, height, tuple(placed[int(i)] for i in order))


def draw_few(rng: np.random.Generator, things: Sequence[Thing], usable: Sequence[int]) -> Layout:
    """Draw a layout of two or three large things of different names."""
    short = round(LONG_SIDE * rng.uniform(*ASPECT))
    upright = rng.random() < UPRIGHT
    width, height = (short, LONG_SIDE) if upright else (LONG_SIDE, short)
    common = [i for i in usable if i % COMMON_EVERY == 0]
    pool = common if common and rng.random() < COMMON else usable
    placed: list[Placed] = []
    for _ in range(int(rng.integers(FEW[0], FEW[1] + 1))):
        index = pick(rng, pool)
        diameter = float(rng.uniform(*FEW_DIAMETERS)) * short
        spot = _free_spot(rng, width, height, diameter, placed)
        if spot is not None and all(index != other.thing for other in placed):
            placed.append(_thing(rng, things, index, *spot, diameter))
    return Layout(width, height, tuple(placed))


def _pool(rng: np.random.Generator, things: Sequence[Thing], usable: Sequence[int]) -> list[int]:
    """Two to five things to choose among, all of one section in some scenes."""
    first = pick(rng, usable)
    among = usable
    if rng.random() < ONE_SECTION:
        among = [i for i in usable if things[i].section == things[first].section]
    return [first, *(pick(rng, among) for _ in range(int(rng.integers(1, 5))))]


def _group(
    rng: np.random.Generator,
    things: Sequence[Thing],
    index: int,
    width: int,
    height: int,
    count: int,
) -> list[Placed]:
    """Things of one name: in a row, or anywhere; alike, or each of its own size and colour."""
    short = min(width, height)
    base = float(rng.uniform(*DIAMETERS)) * short
    alike = rng.random() < 0.4
    model = _thing(rng, things, index, 0.0, 0.0, base)
    row = rng.random() < IN_A_ROW
    base = min(base, 0.85 * width / count) if row else base
    level = float(rng.uniform(0.3, 0.7)) * height
    placed: list[Placed] = []
    for number in range(count):
        diameter = base * float(rng.uniform(0.93, 1.07) if row or alike else rng.uniform(0.6, 1.5))
        diameter = float(np.clip(diameter, 0.15 * short, 0.5 * short))
        if row:
            x = (number + 0.5 + float(rng.uniform(-0.1, 0.1))) * width / count
            x = float(np.clip(x, 0.5 * diameter, width - 0.5 * diameter))
            y = level + float(rng.uniform(-0.06, 0.06)) * height
            y = float(np.clip(y, 0.5 * diameter, height - 0.5 * diameter))
        else:
            spot = _free_spot(rng, width, height, diameter, placed)
            if spot is None:
                break
            x, y = spot
        one = _thing(rng, things, index, x, y, diameter)
        if alike:
            one = Placed(index, model.code, x, y, diameter, one.tilt, one.mirrored, model.paint)
        placed.append(one)
    return placed


def _thing(
    rng: np.random.Generator, things: Sequence[Thing], index: int, x: float, y: float, size: float
) -> Placed:
    repaint = things[index].painted and rng.random() < REPAINT
    return Placed(
        thing=index,
        code=pick(rng, things[index].codes),
        x=x,
        y=y,
        diameter=size,
        tilt=float(rng.uniform(-TILT, TILT)) if rng.random() < 0.6 else 0.0,
        mirrored=rng.random() < 0.5,
        paint=pick(rng, PAINTS) if repaint else None,
    )


def _free_spot(
    rng: np.random.Generator, width: int, height: int, diameter: float, placed: Sequence[Placed]
) -> tuple[float, float] | None:
    margin = 0.5 * diameter
    for _ in range(TRIES):
        x = float(rng.uniform(margin, width - margin))
        y = float(rng.uniform(margin, height - margin))
        if all(
            np.hypot(x - other.x, y - other.y) >= SEPARATION * (diameter + other.diameter) / 2
            for other in placed
        ):
            return x, y
    return None


def pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    """One of them, each as likely."""
    return options[int(rng.integers(len(options)))]
