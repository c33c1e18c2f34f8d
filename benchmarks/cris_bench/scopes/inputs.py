"""What contestants are given: the reference's random tensors, and pictures that are never twice."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

# Coarse noise, made large: about as hard for a JPEG decoder as a photograph.
_GRAIN = 24
WORDS = "the man in red"


def random_image(batch: int, size: int) -> NDArray[np.float32]:
    """The reference's image: standard normal (batch, 3, size, size)."""
    return np.random.default_rng(0).standard_normal((batch, 3, size, size), np.float32)


def random_tokens(count: int, word_len: int, vocabulary: int) -> NDArray[np.int64]:
    """The reference's expression: token numbers (count, word_len), none of them padding."""
    return np.random.default_rng(1).integers(1, vocabulary - 1, (count, word_len))


class Fresh:
    """Pictures and expressions that an engine has not seen, so that its caches are of no help.

    Args:
        height: Of the pictures, pixels.
        width: Likewise.
        seed: Two sources with different seeds give different pictures and expressions.
    """

    def __init__(self, height: int, width: int, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        coarse = self._random.integers(
            0, 256, (-(-height // _GRAIN), -(-width // _GRAIN), 3), np.uint8
        )
        self._picture: NDArray[np.uint8] = np.asarray(
            cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8
        )
        self._number = seed * 1_000_000

    def picture(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, valid until the next call."""
        height, width = self._picture.shape[:2]
        # Large enough to be seen in the letterboxed square, by which an engine knows an image.
        corner = self._picture[: -(-height // 8), : -(-width // 8)]
        corner[:] = self._random.integers(0, 256, (1, 1, 3), np.uint8)
        corner[: -(-len(corner) // 2)] = self._random.integers(0, 256, (1, 1, 3), np.uint8)
        return self._picture

    def file(self) -> bytes:
        """A picture as a JPEG file's bytes."""
        _, data = cv2.imencode(".jpg", cv2.cvtColor(self.picture(), cv2.COLOR_RGB2BGR))
        return bytes(data)

    def expression(self) -> str:
        """The number is in front, because a model with few words reads only the beginning."""
        self._number += 1
        return f"{self._number} cups"

    def expressions(self, count: int) -> list[str]:
        """So many of them."""
        return [self.expression() for _ in range(count)]
