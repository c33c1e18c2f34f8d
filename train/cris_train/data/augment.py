"""Augmentation: the same picture at another size, place and light, or mirrored with its words.

What is drawn is a function of the generator alone (`rows.py` gives one of seed, epoch and
position), and of what is said: a picture of which something cannot be said mirrored is not
mirrored, one of which something says where it is is not moved, and none is enlarged or moved so far
that an object that is asked for leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from cris_deploy.documents import Share
from cris_deploy.errors import InputError
from cris_deploy.pixels import image as images
from cris_train.data.mirror import mirrored, says_where
from cris_train.data.target import TargetSampling, mask_target

Pixels: TypeAlias = npt.NDArray[np.uint8]
Mask: TypeAlias = npt.NDArray[np.bool_]
Factor: TypeAlias = Annotated[float, Meta(ge=0.5, le=2)]


@dataclass(frozen=True)
class Augment:
    """How much a picture may change; each draw is uniform. The defaults change nothing.

    Attributes:
        scale: Least and largest factor of its size in the square that the model sees.
        crop: How far it is moved, as a share of what the new size leaves over; 0 keeps its centre.
        colour: Brightness, contrast and saturation change by up to this share. Hues stay: words
            name them.
        flip: How often it is mirrored.
    """

    scale: tuple[Factor, Factor] = (1.0, 1.0)
    crop: Share = 0.0
    colour: Share = 0.0
    flip: Share = 0.0

    def __post_init__(self) -> None:
        if self.scale[0] > self.scale[1]:
            raise InputError(f"scale is {list(self.scale)}: give the smaller factor first")


@dataclass(frozen=True)
class Augmented:
    """A picture with k expressions, changed.

    Attributes:
        square: (S, S, 3) uint8 RGB, letterboxed.
        targets: (k, S/4, S/4) float32, 0 to 1.
        said: The k expressions, of this picture.
    """

    square: Pixels
    targets: npt.NDArray[np.float32]
    said: tuple[str, ...]


def augmented(
    picture: Pixels,
    masks: Sequence[Mask],
    said: Sequence[str],
    *,
    size: int,
    sampling: TargetSampling,
    augment: Augment,
    rng: np.random.Generator,
) -> Augmented:
    """Change a picture, the masks of its objects and what is said of them, together.

    Args:
        picture: (H, W, 3) uint8 RGB.
        masks: k masks (H, W) bool, not empty, one for each expression.
        said: k expressions.
        size: Side S of the square, pixels.
        sampling: How masks become targets.
        augment: How much.
        rng: Seven numbers are drawn from it, whatever comes of them.
    """
    flip, scale, right, down, *light = rng.random(7).tolist()
    mirror = [mirrored(one) for one in said]
    turned = [one for one in mirror if one is not None]
    if flip < augment.flip and len(turned) == len(said):
        picture, masks, said = picture[:, ::-1], [mask[:, ::-1] for mask in masks], turned
    height, width = picture.shape[:2]
    whole = images.Letterbox(height, width, size).matrix
    low, high = augment.scale
    factor = low + scale * (high - low)
    crop = 0.0 if any(says_where(one) for one in said) else augment.crop
    room = crop * abs(factor - 1.0) * size / 2
    move = (1.0 - factor) * size / 2 + np.array([2 * right - 1, 2 * down - 1]) * room
    matrix = factor * whole + np.column_stack([np.zeros((2, 2)), move])
    if not all(_inside(mask, matrix, size) for mask in masks):
        matrix = whole
    square = cv2.warpAffine(
        _lit(picture, augment.colour, *light) if augment.colour else np.ascontiguousarray(picture),
        matrix,
        (size, size),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=tuple(255 * mean for mean in images.MEAN),
    )
    targets = [mask_target(np.asarray(mask), size, sampling, matrix) for mask in masks]
    return Augmented(np.asarray(square, np.uint8), np.stack(targets), tuple(said))


def _inside(mask: Mask, matrix: npt.NDArray[np.float64], size: int) -> bool:
    """Whether the whole of an object stays in the square."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    corners = np.array([[columns[0], rows[0], 1], [columns[-1] + 1, rows[-1] + 1, 1]]) @ matrix.T
    # A letterbox is not rounded: what touches the border may lie a hair outside.
    return bool(corners.min() >= -0.5 and corners.max() <= size + 0.5)


def _lit(picture: Pixels, most: float, bright: float, contrast: float, colour: float) -> Pixels:
    """Another light, (H, W, 3) uint8: three draws of 0..1 become factors 1 - most .. 1 + most."""
    gain, spread, strength = (
        1.0 + most * (2.0 * draw - 1.0) for draw in (bright, contrast, colour)
    )
    picture = np.ascontiguousarray(picture)
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    mixed = cv2.addWeighted(picture, strength, grey, 1.0 - strength, 0.0)
    middle = gain * float(grey.mean())
    table = spread * (gain * np.arange(256) - middle) + middle
    return np.asarray(cv2.LUT(mixed, np.clip(np.rint(table), 0, 255).astype(np.uint8)), np.uint8)
