"""What the engine gives for one expression."""

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from cris_deploy.execution.executor import Decoded
from cris_deploy.execution.steps import Prompt
from cris_deploy.pixels import image as images
from cris_deploy.pixels import mask as masks
from cris_deploy.results import overlay


class RunLengths(TypedDict):
    """COCO's compressed run-length encoding of a mask."""

    size: list[int]
    counts: str


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The pixels an expression refers to.

    mask: (H, W) bool at the size of the image that was given.
    logits: (h, w) float32, the model's output in its own low resolution and letterboxed frame.
    expression: as it was given.
    truncated: whether the model saw only its beginning (see the bundle's word length).
    area: number of pixels in the mask.
    box: the mask's bounds (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; None if it is empty.
    """

    mask: NDArray[np.bool_]
    logits: NDArray[np.float32]
    expression: str
    truncated: bool
    area: int
    box: masks.Box | None

    @classmethod
    def of(cls, decoded: Decoded, prompt: Prompt) -> "Segmentation":
        """Make it of what was decoded for an expression."""
        upsampled, logits = decoded
        assert upsampled.mask is not None  # it was asked for
        return cls(
            upsampled.mask,
            logits,
            prompt.expression,
            prompt.truncated,
            upsampled.area,
            upsampled.box,
        )

    @property
    def score(self) -> float:
        """The highest probability of any pixel, 0..1, in the low resolution."""
        highest = float(self.logits.max())
        if highest >= 0:  # the sigmoid in two branches, since exp overflows on one side
            return 1 / (1 + math.exp(-highest))
        return math.exp(highest) / (1 + math.exp(highest))

    def rle(self) -> RunLengths:
        """Encode the mask as COCO's compressed run lengths: {"size": [H, W], "counts": str}."""
        height, width = self.mask.shape
        return {"size": [height, width], "counts": masks.rle(self.mask)}

    def overlay(
        self, image: images.ImageInput, max_pixels: int = images.MAX_PIXELS
    ) -> images.Pixels:
        """Draw the mask onto the image that was segmented: (H, W, 3) uint8 RGB.

        Raises ImageError, and InputError if the image has another size than the mask.
        """
        rgb = images.decode(image, max_pixels)
        return overlay.draw(rgb, [self.mask], [overlay.colour(0)])

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return (
            f"Segmentation({self.expression!r}, {width} x {height}, area={self.area}, "
            f"box={self.box}, score={self.score:.3f}{', truncated' if self.truncated else ''})"
        )
