"""What is to be seen in a drawn scene: all that an expression's truth depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cris_train.synthetic.named.colours import colour_bits, shares
from cris_train.synthetic.named.names import Thing
from cris_train.synthetic.named.render import Drawing
from cris_train.synthetic.named.scenes import Layout

# A thing of which less is visible is taken out of the scene.
LEAST_VISIBLE: Final = 0.62
LEAST_PIXELS: Final = 220
# Shares of the thing behind that the one before it covers: from here on people would say so.
COVERS: Final = 0.04


@dataclass(frozen=True)
class Seen:
    """A thing as it is seen.

    Attributes:
        name: Its usual name.
        words: All words that are true of it.
        x: Middle of its visible box, pixels from the left.
        y: The same from the top.
        box: (x0, y0, x1, y1) of what is visible, pixels, the upper ends exclusive.
        size: Square root of its area in pixels, as if nothing stood before it.
        colours: Colour -> shares of its visible pixels that surely, and that perhaps, go by it.
        covers: Indices of the things that it clearly stands before.
        touches: Indices of the things that it overlaps at all, before or behind.
    """

    name: str
    words: frozenset[str]
    x: float
    y: float
    box: tuple[int, int, int, int]
    size: float
    colours: Mapping[str, tuple[float, float]]
    covers: frozenset[int]
    touches: frozenset[int]


@dataclass(frozen=True)
class Facts:
    """A scene as it is seen; `taken` are words that its background shows already."""

    width: int
    height: int
    items: tuple[Seen, ...]
    taken: frozenset[str]

    @property
    def short_side(self) -> int:
        """Length in pixels that distances are relative to."""
        return min(self.width, self.height)


def hidden(drawing: Drawing, scale: float = 1.0) -> list[int]:
    """Indices of things of which too little is visible to speak of, in a picture `scale` larger."""
    seen = drawing.masks.sum(axis=(1, 2))
    whole = drawing.whole.sum(axis=(1, 2))
    least = LEAST_PIXELS * scale**2
    return [i for i in range(len(seen)) if seen[i] < least or seen[i] < LEAST_VISIBLE * whole[i]]


def look(layout: Layout, drawing: Drawing, things: Sequence[Thing], taken: frozenset[str]) -> Facts:
    """Measure a drawn scene."""
    bits = colour_bits(drawing.image)
    items = []
    for i, placed in enumerate(layout.placed):
        thing, mask = things[placed.thing], drawing.masks[i]
        box = _box(mask)
        covers, touches = _overlaps(drawing, i)
        items.append(
            Seen(
                name=thing.name,
                words=thing.words,
                x=(box[0] + box[2]) / 2,
                y=(box[1] + box[3]) / 2,
                box=box,
                size=float(np.sqrt(drawing.whole[i].sum())),
                colours=shares(bits, mask),
                covers=covers,
                touches=touches,
            )
        )
    return Facts(layout.width, layout.height, tuple(items), taken)


def _box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    y, x = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def _overlaps(drawing: Drawing, index: int) -> tuple[frozenset[int], frozenset[int]]:
    covers, touches = set(), set()
    for other in range(len(drawing.whole)):
        if other == index:
            continue
        shared = int((drawing.whole[index] & drawing.whole[other]).sum())
        if shared:
            touches.add(other)
            if index > other and shared >= COVERS * int(drawing.whole[other].sum()):
                covers.add(other)
    return frozenset(covers), frozenset(touches)
