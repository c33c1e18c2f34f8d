"""Every expression is in one group by words and one by area, and the groups add up to the split."""

from pathlib import Path

import pytest
import torch

from cris_train import checkpoint
from cris_train.evaluation.groups import AREA_GROUPS, WORDS_GROUPS, area_group, words_group
from cris_train.evaluation.measure import EvalOptions, measure
from cris_train.model import Cris, CrisConfig
from cris_train.synthetic.refer_files import write_scenes
from tests.helpers.models import randomised


@pytest.mark.parametrize(("words", "group"), [(1, 0), (3, 0), (4, 1), (6, 1), (7, 2), (15, 2)])
def test_groups_by_words(words: int, group: int) -> None:
    assert words_group(" ".join(["cup"] * words)) == WORDS_GROUPS[group]


@pytest.mark.parametrize(
    ("share", "group"),
    [(0.0, 0), (0.0199, 0), (0.02, 1), (0.049, 1), (0.05, 2), (0.099, 2), (0.10, 3), (1.0, 3)],
)
def test_groups_by_area(share: float, group: int) -> None:
    assert area_group(share) == AREA_GROUPS[group]


def test_groups_add_up_to_the_split(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", {"val": 3}, seed=1)
    torch.manual_seed(0)
    path = checkpoint.save(tmp_path / "best.pth", randomised(Cris(CrisConfig.tiny())))
    (score,) = measure(EvalOptions(data=tmp_path / "scenes", checkpoint=path)).splits
    assert len(score.by_words) >= 2
    assert len(score.by_area) >= 2
    for groups in (score.by_kind, score.by_words, score.by_area):
        total = sum(group.expressions for group in groups.values())
        assert total == score.expressions
        mean = sum(group.expressions * group.mean_iou for group in groups.values()) / total
        assert mean == pytest.approx(score.mean_iou)
