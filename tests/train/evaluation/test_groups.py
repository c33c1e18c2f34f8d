"""Scores by kind, words and size: each expression is in one group of each, others are left out."""

from pathlib import Path

import numpy as np
import pytest

from cris_train.data.refer import ReferImage, ReferObject
from cris_train.evaluation.evaluate import Outcome
from cris_train.evaluation.groups import Groups, size_group, words_group


@pytest.mark.parametrize(
    ("words", "group"),
    [(1, "1-2"), (2, "1-2"), (3, "3-4"), (8, "7-8"), (9, "9 or more"), (12, "9 or more")],
)
def test_words(words: int, group: str) -> None:
    assert words_group(words) == group


@pytest.mark.parametrize(
    ("share", "group"),
    [(0.001, "below 1%"), (0.01, "below 3%"), (0.08, "below 9%"), (0.5, "larger")],
)
def test_sizes(share: float, group: str) -> None:
    assert size_group(share) == group


def outcome(number: int, expression: str, pixels: int, iou: float) -> Outcome:
    truth = np.zeros((10, 10), np.bool_)
    truth.reshape(-1)[:pixels] = True
    item = ReferObject(0, None, (expression,), (number,))
    image = ReferImage(Path("x.png"), 10, 10, (item,))
    return Outcome(image, item, expression, number, truth, truth, iou)


def test_means_of_groups_and_nothing_of_expressions_without_a_kind() -> None:
    groups = Groups({1: "name", 2: "name", 3: "relation"})
    groups.add(outcome(1, "the cup", 2, 0.5))
    groups.add(outcome(2, "red cup here", 2, 1.0))
    groups.add(outcome(3, "the cup left of it", 50, 0.25))
    groups.add(outcome(4, "not known", 50, 0.9))
    kinds = groups.scores(groups.kinds)
    assert {k: (v.expressions, v.mean_iou) for k, v in kinds.items()} == {
        "name": (2, 0.75),
        "relation": (1, 0.25),
    }
    words = groups.scores(groups.words)
    assert {k: v.expressions for k, v in words.items()} == {"1-2": 1, "3-4": 1, "5-6": 1}
    sizes = groups.scores(groups.sizes)
    assert {k: v.mean_iou for k, v in sizes.items()} == {"below 3%": 0.75, "larger": 0.25}
