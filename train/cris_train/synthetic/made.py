"""A generated scene as it is written to disk, whatever is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cris_train.synthetic.expressions import Description


@dataclass(frozen=True)
class MadeScene:
    """A picture with its objects.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        masks: (n, H, W) bool, the visible part of each object.
        categories: Of each object, index in its maker's `categories`.
        descriptions: Of each object; none where nothing means it alone.
    """

    image: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]
    categories: tuple[int, ...]
    descriptions: tuple[tuple[Description, ...], ...]


class Maker(Protocol):
    """Makes the scenes of a data set; worker processes get copies of it."""

    @property
    def categories(self) -> tuple[str, ...]:
        """What objects are, for instances.json."""

    @property
    def supercategory(self) -> str:
        """What they all are."""

    def make(self, seed: int, split: str, index: int) -> MadeScene:
        """Scene `index` of a split: the same for the same seed, unlike every other."""
