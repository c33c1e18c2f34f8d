"""The paper's tables: they agree with themselves, and stand beside ours split by split."""

from dataclasses import replace
from itertools import pairwise

import pytest

from cris_train.evaluation.paper import (
    CRIS,
    REFCOCO,
    REFCOCO_PLUS,
    REFCOCOG,
    TABLE_1,
    TABLE_2,
    fps_of,
)
from cris_train.evaluation.report import EvalReport
from cris_train.evaluation.report_text import describe
from cris_train.model import CrisConfig
from tests.train.evaluation.test_report import VAL, report

SPLITS = {
    REFCOCO: ("val", "testA", "testB"),
    REFCOCO_PLUS: ("val", "testA", "testB"),
    REFCOCOG: ("val", "test"),
}


def measured(data: tuple[str, str], *splits: str, **changes: object) -> EvalReport:
    scores = tuple(replace(VAL, split=split) for split in splits)
    return report(*scores, data=data[0], split_by=data[1], **changes)


def rows(text: str, first: str) -> list[list[str]]:
    """Cells of the lines whose first cell is `first`."""
    table = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    return [cells for cells in table if cells[0] == first]


def test_table_1_is_seven_models_on_three_data_sets() -> None:
    models = {(row.contrastive, row.decoder_layers) for row in TABLE_1}
    assert len(models) == 7
    assert len({(row.data, *model) for row in TABLE_1 for model in models}) == len(TABLE_1) == 21
    sizes = {(r.contrastive, r.decoder_layers, r.parameters_millions) for r in TABLE_1}
    assert len(sizes) == 7  # a model has one size, whatever it is measured on


@pytest.mark.parametrize("data", SPLITS, ids=lambda data: data[0])
def test_table_1_agrees_with_itself(data: tuple[str, str]) -> None:
    mine = [row for row in TABLE_1 if row.data == data]
    for row in mine:
        assert list(row.shares) == sorted(row.shares, reverse=True)
        assert row.shares[-1] < row.mean_iou < row.shares[0]
    by_size = sorted(mine, key=lambda row: row.parameters_millions)
    fps = [row.fps for row in by_size]
    assert fps == sorted(fps, reverse=True)  # a larger model is slower
    layers = [row.parameters_millions for row in mine if row.contrastive]
    steps = {round(after - before, 2) for before, after in pairwise(layers)}
    assert steps == {4.21}  # one more decoder layer
    best = max(mine, key=lambda row: row.mean_iou)
    assert (best.contrastive, best.decoder_layers) == (True, 3)
    # The model of the main results is that of Table 2.
    (full,) = (r for r in TABLE_2 if (r.method, r.backbone) == (CRIS, "ResNet-50"))
    assert full.mean_iou(data, "val") == best.mean_iou


def test_table_2_agrees_with_itself() -> None:
    assert len({(row.method, row.backbone) for row in TABLE_2}) == len(TABLE_2) == 17
    ours = [row for row in TABLE_2 if row.method == CRIS]
    assert [row.backbone for row in ours] == ["ResNet-50", "ResNet-101"]
    for data, splits in SPLITS.items():
        for split in splits:
            scores = [row.mean_iou(data, split) for row in TABLE_2]
            known = [score for score in scores if score is not None]
            assert max(known) == ours[1].mean_iou(data, split)  # the paper's claim
            assert all(25 < score < 75 for score in known)
        assert ours[0].mean_iou(data, "train") is None
    assert ours[0].mean_iou(("refcocog", "google"), "val") is None


def test_frames_per_second_are_those_of_the_full_model() -> None:
    assert fps_of(CrisConfig.rn50()) == 19.22
    assert fps_of(CrisConfig.tiny()) is None


@pytest.mark.parametrize(
    ("data", "split", "rn50", "rn101", "count"),
    [
        (REFCOCO, "val", "69.52", "70.47", 17),
        (REFCOCO, "testA", "72.72", "73.18", 17),
        (REFCOCO, "testB", "64.70", "66.10", 17),
        (REFCOCO_PLUS, "val", "61.39", "62.27", 16),
        (REFCOCO_PLUS, "testA", "67.10", "68.08", 16),
        (REFCOCO_PLUS, "testB", "52.48", "53.68", 16),
        (REFCOCOG, "val", "59.35", "59.87", 9),
        (REFCOCOG, "test", "59.39", "60.36", 9),
    ],
)
def test_the_papers_rows_for_each_split(
    data: tuple[str, str], split: str, rn50: str, rn101: str, count: int
) -> None:
    text = describe(measured(data, split))
    assert rows(text, "CRIS") == [["CRIS", "ResNet-50", rn50], ["CRIS", "ResNet-101", rn101]]
    table = next(part for part in text.split("\n\n") if "Table 2" in part)
    assert len(table.splitlines()) == count + 3  # head, rule, and ours
    assert rows(table, "scenes.pth") == [["scenes.pth", "RN50", "50.00"]]


def test_several_splits_are_columns_and_val_has_table_1() -> None:
    text = describe(measured(("RefCOCO", "unc"), "testB", "val", "odd"))
    assert rows(text, "VLT") == [["VLT", "DarkNet-53", "62.73", "65.65", "-"]]
    assert rows(text, "the paper")[0][1:] == ["69.52", "81.35", "77.54", "70.79", "52.65", "16.21"]
    assert "Table 1" not in describe(measured(REFCOCO, "testA"))
    another = replace(report().measured, input_size=160)
    assert "Table 1" not in describe(measured(REFCOCO, "val", measured=another))


def test_no_paper_where_it_has_no_number() -> None:
    for other in (
        measured(("scenes", "unc"), "val"),
        measured(("refcocog", "google"), "val"),
        measured(REFCOCO, "train"),
        measured(REFCOCO, "val", limit=3),
    ):
        assert "paper" not in describe(other)
