"""From a picture to what the network sees: letterbox geometry, normalisation.

Colour order is RGB everywhere in this project, layout is (height, width, channel) uint8 until
`normalise`, and (channel, height, width) float32 after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from cris_deploy.errors import InputError
from cris_deploy.pixels.decoding import MAX_PIXELS, ImageInput, Pixels, decode, most_bytes

__all__ = [
    "MAX_PIXELS",
    "MEAN",
    "STD",
    "SUFFIXES",
    "ImageInput",
    "Letterbox",
    "Pixels",
    "decode",
    "letterbox",
    "most_bytes",
    "normalise",
    "normalise_all",
]

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"),
    *(".gif", ".ppm", ".pgm", ".jp2", ".avif"),
)
"""Of files that are taken for images in a folder."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""CLIP's channel means, RGB, in units of the 0..1 range."""

STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's channel standard deviations, RGB, in units of the 0..1 range."""


@dataclass(frozen=True, slots=True)
class Letterbox:
    """The map between an image of `height` x `width` and the square input of side `size`.

    The longer side fills the square, the rest is padded equally on both sides. Sides and offsets
    are not rounded. Coordinates are (x, y) in OpenCV's convention.
    """

    height: int
    width: int
    size: int

    def __post_init__(self) -> None:
        for name in ("height", "width", "size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Image to square, (2, 3) float64."""
        image, square = self._corners()
        return np.asarray(cv2.getAffineTransform(image, square), dtype=np.float64)

    @property
    def inverse(self) -> NDArray[np.float64]:
        """Square to image, (2, 3) float64."""
        image, square = self._corners()
        return np.asarray(cv2.getAffineTransform(square, image), dtype=np.float64)

    def _corners(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        # float32 points, as in training: in float64 the offsets differ in the last bits, and with
        # them pixels at the border of the padding.
        scale = min(self.size / self.height, self.size / self.width)
        new_height, new_width = self.height * scale, self.width * scale
        x, y = (self.size - new_width) / 2, (self.size - new_height) / 2
        image = np.array([[0, 0], [self.width, 0], [0, self.height]], np.float32)
        square = np.array([[x, y], [new_width + x, y], [x, new_height + y]], np.float32)
        return image, square


def letterbox(rgb: Pixels, size: int) -> Pixels:
    """Fit an (H, W, 3) uint8 RGB image into a (size, size, 3) uint8 square.

    Bicubic, no antialiasing, padded with CLIP's mean colour: what the model was trained with.
    """
    height, width = rgb.shape[:2]
    square = cv2.warpAffine(
        np.ascontiguousarray(rgb),
        Letterbox(height, width, size).matrix,
        (size, size),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=tuple(255 * mean for mean in MEAN),
    )
    return np.asarray(square, dtype=np.uint8)


def normalise(square: Pixels, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Scale (S, S, 3) uint8 RGB to the model's (3, S, S) float32: (value / 255 - MEAN) / STD.

    Written into `out` where it is given.
    """
    planes = np.empty((3, *square.shape[:2]), np.float32) if out is None else out
    # A table of 256 values per channel is exact and a third of the time of the arithmetic.
    for channel, table in enumerate(_tables()):
        cv2.LUT(square[:, :, channel], table, dst=planes[channel])
    return planes


def normalise_all(squares: Sequence[Pixels] | Pixels) -> NDArray[np.float32]:
    """Normalise n images of one size into (n, 3, S, S), each of them written once."""
    batch = np.empty((len(squares), 3, *squares[0].shape[:2]), np.float32)
    for square, planes in zip(squares, batch, strict=True):
        normalise(square, planes)
    return batch


@cache
def _tables() -> NDArray[np.float32]:
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    return np.asarray((values - mean[:, None]) / std[:, None], dtype=np.float32)  # (3, 256)
