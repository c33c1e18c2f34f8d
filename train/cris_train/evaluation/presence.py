"""Asked for what is not there: CRIS always answers, and how often its score gives it away."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from cris_deploy.errors import DataError, ImageError
from cris_train.data.refer import ReferImage
from cris_train.evaluation.report import Presence
from cris_train.synthetic.named.absent import AbsentNames

ASKED: Final = 4  # of a picture: so many expressions that mean something in it, so many that do not
KEPT: Final = 0.95  # share of what is there that a threshold keeps where it was chosen


class Scorer(Protocol):
    """What is asked: both of `segmenters.py`."""

    def scores(self, image: ReferImage, expressions: Sequence[str]) -> list[float]:
        """The highest probability of any pixel, for each expression."""


@dataclass
class Scores:
    """Highest probabilities of pictures' expressions.

    Attributes:
        present: Of expressions that mean something in their picture.
        absent: Of names of what is not in it.
    """

    present: list[float] = field(default_factory=list)
    absent: list[float] = field(default_factory=list)

    def threshold(self) -> float:
        """The least score that keeps `KEPT` of what is there."""
        return float(np.quantile(self.present, 1 - KEPT))

    def judge(self, threshold: float, chosen_on: str) -> Presence:
        """What a threshold does to them."""
        return Presence(
            threshold=threshold,
            chosen_on=chosen_on,
            present=len(self.present),
            kept=float(np.mean(np.array(self.present) >= threshold)),
            absent=len(self.absent),
            caught=float(np.mean(np.array(self.absent) < threshold)),
        )


def ask(scorer: Scorer, images: Sequence[ReferImage], names: AbsentNames) -> Scores | None:
    """Ask for what is there and for what is not; None for data that do not say what is there.

    A picture that cannot be read is passed by: `evaluate` has told of it.
    """
    scores = Scores()
    for image in images:
        absent = names.of(image.path.name, ASKED)
        said = [text for item in image.objects for text in item.expressions]
        present = random.Random(image.path.name).sample(said, min(ASKED, len(said)))
        if not absent or not present:
            continue
        try:
            found = scorer.scores(image, [*present, *absent])
        except (ImageError, DataError):
            continue
        scores.present += found[: len(present)]
        scores.absent += found[len(present) :]
    return scores if scores.present else None
