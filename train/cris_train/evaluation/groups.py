"""Which expressions a model finds hard: scores by kind, number of words, size of the object."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from cris_train.evaluation.evaluate import Outcome
from cris_train.evaluation.report import KindScore

# Upper limits of groups by an object's share of the picture.
SIZE_LIMITS: Final = (0.01, 0.03, 0.09)


class Groups:
    """IoUs by what generated scenes say of an expression; all empty for other data."""

    def __init__(self, known: dict[int, str]) -> None:
        self._known = known
        self.kinds: dict[str, list[float]] = defaultdict(list)
        self.words: dict[str, list[float]] = defaultdict(list)
        self.sizes: dict[str, list[float]] = defaultdict(list)

    def add(self, outcome: Outcome) -> None:
        """Count an outcome, if its kind is known."""
        if outcome.sentence_id not in self._known:
            return
        self.kinds[self._known[outcome.sentence_id]].append(outcome.iou)
        self.words[words_group(len(outcome.expression.split()))].append(outcome.iou)
        self.sizes[size_group(float(outcome.truth.mean()))].append(outcome.iou)

    @staticmethod
    def scores(ious: dict[str, list[float]]) -> dict[str, KindScore]:
        """Number and mean of each group, by name."""
        return {k: KindScore(len(v), sum(v) / len(v)) for k, v in sorted(ious.items())}


def words_group(count: int) -> str:
    """The group of an expression of `count` words: two numbers each, nine and more together."""
    if count >= 9:
        return "9 or more"
    first = count - 1 + count % 2
    return f"{first}-{first + 1}"


def size_group(share: float) -> str:
    """The group of an object that covers `share` of the picture, 0 to 1."""
    return next((f"below {limit:.0%}" for limit in SIZE_LIMITS if share < limit), "larger")
