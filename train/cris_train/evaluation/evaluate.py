"""Evaluation: every expression of every object, by whatever gives masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cris_deploy.errors import CrisError, DataError, ExpressionError, ImageError
from cris_deploy.words.cleaning import clean
from cris_train.data.refer import ReferImage, ReferObject
from cris_train.evaluation.metrics import MaskMetrics

Mask = npt.NDArray[np.bool_]


class Segmenter(Protocol):
    """What is measured: a checkpoint's model or an exported engine (`segmenters.py`)."""

    def __call__(self, image: ReferImage, expressions: Sequence[str]) -> list[Mask]:
        """Masks (H, W) bool at image size, one for each expression, in their order."""


@dataclass(frozen=True)
class Outcome:
    """What became of one expression.

    Attributes:
        image: The picture.
        item: The object that was meant.
        expression: What was said.
        sentence_id: Its number in the data set.
        mask: (H, W) bool, what was found.
        truth: (H, W) bool.
        iou: Of the two, 0 to 1.
    """

    image: ReferImage
    item: ReferObject
    expression: str
    sentence_id: int
    mask: Mask
    truth: Mask
    iou: float


def evaluate(
    segmenter: Segmenter,
    images: Sequence[ReferImage],
    *,
    tick: Callable[[], object] = lambda: None,
    observe: Callable[[Outcome], object] = lambda outcome: None,
    skip: Callable[[ReferImage, CrisError], object] | None = None,
) -> MaskMetrics:
    """Measure on all expressions of all objects, at image size.

    Args:
        segmenter: What gives the masks.
        images: The pictures, with their objects and expressions.
        tick: Called after every picture.
        observe: Called with every expression's outcome, in the order of the data set.
        skip: Called with what cannot be used, and why: a picture, an object's mask, or an
            expression without words, which is then left out. None: that is an error.

    Raises:
        ImageError: a picture cannot be read.
        DataError: a picture has another size than the data set says, or a mask is damaged.
        ExpressionError: an expression has no words.
    """
    metrics = MaskMetrics()
    for image in images:
        asked = list(_asked(image, skip))
        try:
            found = segmenter(image, [one.expression for one in asked]) if asked else []
        except (ImageError, DataError) as error:
            if skip is None:
                raise
            skip(image, error)
        else:
            for one, mask in zip(asked, found, strict=True):
                iou = metrics.add(mask, one.truth)
                observe(
                    Outcome(image, one.item, one.expression, one.sentence_id, mask, one.truth, iou)
                )
        tick()
    return metrics


@dataclass(frozen=True)
class _Question:
    """An expression, and the answer."""

    item: ReferObject
    expression: str
    sentence_id: int
    truth: Mask


def _asked(
    image: ReferImage, skip: Callable[[ReferImage, CrisError], object] | None
) -> Iterator[_Question]:
    for item in image.objects:
        try:
            truth = image.mask(item)
        except DataError as error:
            if skip is None:
                raise
            skip(image, error)
            continue
        for said, number in zip(item.expressions, item.sentence_ids, strict=True):
            if clean(said):
                yield _Question(item, said, number, truth)
                continue
            empty = ExpressionError(
                f"{image.path}: expression {number} of object {item.ref_id} is {said!r} and has "
                f"no words: mend it in the data set"
            )
            if skip is None:
                raise empty
            skip(image, empty)
