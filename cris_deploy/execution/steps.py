"""What goes from step to step, and the steps themselves, as scenes and streams ask for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from cris_deploy.execution.executor import Decoded, Features
from cris_deploy.pixels.image import ImageInput, Pixels

if TYPE_CHECKING:
    from cris_deploy.execution.cuda.executor import DeviceMask


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image, letterboxed to (S, S, 3) uint8 RGB, and the size it had."""

    square: Pixels
    height: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPicture:
    """What the image encoder made of a picture, and the size it had."""

    features: Features
    height: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """An expression as it was given, its tokens (word_len,) int64, and whether they were cut.

    A pixel is in the mask if its probability is above `threshold`, None for the model's own;
    `probabilities` asks for the map of them at image size.
    """

    expression: str
    tokens: NDArray[np.int64]
    truncated: bool
    threshold: float | None = None
    probabilities: bool = False


class Steps(Protocol):
    """The way from images and expressions to masks. May be used from many threads."""

    def read_expressions(
        self,
        expression: str | Sequence[str],
        threshold: float | None = None,
        probabilities: bool = False,
    ) -> list[Prompt]:
        """Tokenise; ExpressionError for the first that cannot be used."""

    def prepare(self, image: ImageInput) -> Picture:
        """Decode and letterbox; ImageError if that cannot be done."""

    def encode_pictures(self, pictures: Sequence[Picture]) -> list[EncodedPicture]:
        """Run the image encoder on those that are not known, those of equal pixels once."""

    def decode_masks(
        self, scenes: Sequence[EncodedPicture], prompts: Sequence[Prompt]
    ) -> list[Decoded]:
        """Segment each scene with the expression in its place."""

    def decode_masks_on_device(
        self, scenes: Sequence[EncodedPicture], prompts: Sequence[Prompt], stream: object
    ) -> "list[DeviceMask]":
        """Segment as `decode_masks` does; the masks stay on the GPU, for use on `stream`."""
