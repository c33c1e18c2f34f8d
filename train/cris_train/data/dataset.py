"""What feeds the model: letterboxed pictures, tokens, and target masks at a quarter of the size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import cv2
import numpy as np
import numpy.typing as npt
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from cris_deploy import image as images
from cris_deploy.errors import DataError
from cris_deploy.text import clean
from cris_train.data.refer import ReferImage, ReferObject
from cris_train.model import CrisConfig

# The mask step calls a pixel the object's above this probability; at an object's edge, where a
# cell is half covered, a soft target takes this value: 0.5 ** EDGE_POWER = THRESHOLD.
THRESHOLD = 0.35
EDGE_POWER = math.log(THRESHOLD) / math.log(0.5)
# Radius of the cell of 4x4 input pixels that a target value stands for, as a Gaussian's sigma.
CELL_SIGMA = 1.3


class TargetSampling(Enum):
    """How a mask becomes a target of a quarter of the input size.

    NEAREST takes input pixel 4i for cell i, as the reference does. Its mask step, however, puts
    cell i back at i * (S - 1) / (S / 4 - 1), up to 3 pixels further: nothing at 416 pixels and for
    large objects, but with perfect predictions at 160 pixels the mean IoU on generated scenes is
    then 0.73. COVERAGE takes the covered share of the cell around that very place, bent so that an
    object's edge falls on the mask step's threshold: 0.92.
    """

    NEAREST = "nearest"
    COVERAGE = "coverage"


@dataclass(frozen=True)
class Batch:
    """B pictures with k expressions each.

    Attributes:
        image: (B, 3, S, S) float32, letterboxed and normalised.
        tokens: (B * k, L) int64, the k expressions of a picture in a row.
        target: (B * k, 1, S/4, S/4) float32, 0 to 1.
    """

    image: Tensor
    tokens: Tensor
    target: Tensor


class ReferData:
    """A split, ready to be drawn from. Pictures and targets are read once and kept as uint8.

    Attributes:
        images: The pictures that have expressions, with these expressions only.
        config: The model that the data is prepared for (input size, word length).
    """

    def __init__(
        self,
        split: Sequence[ReferImage],
        config: CrisConfig,
        *,
        max_words: int | None = None,
        sampling: TargetSampling = TargetSampling.COVERAGE,
    ) -> None:
        """`max_words` leaves longer expressions out (None keeps all).

        Raises:
            DataError: nothing is left.
        """
        kept = (_shortened(image, max_words) for image in split)
        self.images = tuple(image for image in kept if image.objects)
        if not self.images:
            raise DataError(f"max_words is {max_words}: no expression is that short")
        self.config = config
        self._sampling = sampling
        self._tokenizer = SimpleTokenizer()
        self._tokens: dict[str, npt.NDArray[np.int64]] = {}
        self._squares: dict[int, npt.NDArray[np.uint8]] = {}
        self._targets: dict[int, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.images)

    def square(self, index: int) -> npt.NDArray[np.uint8]:
        """Letterboxed picture, (S, S, 3) uint8 RGB.

        Raises:
            ImageError: it cannot be read.
            DataError: its size is not the one in instances.json.
        """
        known = self._squares.get(index)
        if known is None:
            known = images.letterbox(read_picture(self.images[index]), self.config.input_size)
            self._squares[index] = known
        return known

    def tokens(self, expression: str) -> npt.NDArray[np.int64]:
        """CLIP's tokens, (L,) int64: start 49406, end 49407, padding 0.

        Too long: cut, and the last token becomes the end token, as the reference does.
        """
        known = self._tokens.get(expression)
        if known is None:
            length, tokenizer = self.config.word_len, self._tokenizer
            body = tokenizer.encode(clean(expression))[: length - 2]
            known = np.zeros(length, np.int64)
            known[: len(body) + 2] = [tokenizer.sot_token_id, *body, tokenizer.eot_token_id]
            self._tokens[expression] = known
        return known

    def target(self, image: ReferImage, item: ReferObject) -> npt.NDArray[np.float32]:
        """Target mask of an object, (S/4, S/4) float32, 0 to 1 in steps of 1/255."""
        known = self._targets.get(item.ref_id)
        if known is None:
            soft = mask_target(image.mask(item), self.config.input_size, self._sampling)
            known = np.rint(soft * 255).astype(np.uint8)
            self._targets[item.ref_id] = known
        return known.astype(np.float32) / np.float32(255)

    def batches(
        self, images_per_batch: int, expressions_per_image: int, rng: np.random.Generator
    ) -> Iterator[Batch]:
        """One pass over the pictures in random order; an incomplete last batch is left out.

        Each picture comes with `expressions_per_image` draws: first every object of it once, then
        again, each time with one of its expressions.
        """
        order = rng.permutation(len(self.images))
        for start in range(0, len(order) - images_per_batch + 1, images_per_batch):
            pixels, tokens, targets = [], [], []
            for index in order[start : start + images_per_batch].tolist():
                image = self.images[index]
                pixels.append(images.normalise(self.square(index)))
                turn = rng.permutation(len(image.objects)).tolist()
                for draw in range(expressions_per_image):
                    item = image.objects[turn[draw % len(turn)]]
                    said = item.expressions[int(rng.integers(len(item.expressions)))]
                    tokens.append(self.tokens(said))
                    targets.append(self.target(image, item)[None])
            yield Batch(
                torch.from_numpy(np.stack(pixels)),
                torch.from_numpy(np.stack(tokens)),
                torch.from_numpy(np.stack(targets)),
            )


def read_picture(image: ReferImage) -> npt.NDArray[np.uint8]:
    """Decode a picture: (H, W, 3) uint8 RGB.

    Raises:
        ImageError: it cannot be read.
        DataError: its size is not the one in instances.json.
    """
    picture = images.decode(image.path)
    if picture.shape[:2] != (image.height, image.width):
        raise DataError(
            f"{image.path} is {picture.shape[1]}x{picture.shape[0]}, instances.json says "
            f"{image.width}x{image.height}: fetch the picture again"
        )
    return picture


def mask_target(
    mask: npt.NDArray[np.bool_], size: int, sampling: TargetSampling
) -> npt.NDArray[np.float32]:
    """Letterbox a mask (H, W) bool and sample it to (size/4, size/4) float32, 0 to 1."""
    height, width = mask.shape
    square = cv2.warpAffine(
        mask.astype(np.float32),
        images.Letterbox(height, width, size).matrix,
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0.0,
    )
    cells = size // 4
    if sampling is TargetSampling.NEAREST:
        return np.asarray(square[::4, ::4] > 0.5, np.float32)
    blurred = cv2.GaussianBlur(square, (0, 0), CELL_SIGMA)
    place = np.linspace(0.0, size - 1.0, cells, dtype=np.float32)
    x, y = np.meshgrid(place, place)
    covered = cv2.remap(blurred, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(np.clip(covered, 0.0, 1.0) ** EDGE_POWER, np.float32)


def _shortened(image: ReferImage, max_words: int | None) -> ReferImage:
    if max_words is None:
        return image
    objects = []
    for item in image.objects:
        pairs = zip(item.expressions, item.sentence_ids, strict=True)
        short = [pair for pair in pairs if len(pair[0].split()) <= max_words]
        if short:
            said, numbers = zip(*short, strict=True)
            objects.append(dataclasses.replace(item, expressions=said, sentence_ids=numbers))
    return dataclasses.replace(image, objects=tuple(objects))
