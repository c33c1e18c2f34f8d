"""mIoU, oIoU and precision on cases counted by hand."""

import math
import pickle

import numpy as np
import pytest

from cris_train.evaluation.metrics import MaskMetrics


def strip(start: int, stop: int) -> np.ndarray:
    """A (4, 100) mask of the columns start to stop."""
    mask = np.zeros((4, 100), bool)
    mask[:, start:stop] = True
    return mask


def test_iou_of_one_pair() -> None:
    assert MaskMetrics().add(strip(0, 30), strip(10, 40)) == 20 / 40
    assert MaskMetrics().add(strip(0, 10), strip(10, 20)) == 0.0
    assert MaskMetrics().add(strip(5, 25), strip(5, 25)) == 1.0


def test_mean_and_overall_differ_where_sizes_do() -> None:
    metrics = MaskMetrics()
    metrics.add(strip(0, 80), strip(0, 80))  # large and right
    metrics.add(strip(0, 10), strip(10, 20))  # small and wrong
    assert metrics.mean_iou == 0.5
    assert metrics.overall_iou == 80 / 100


def test_precision_is_strictly_above() -> None:
    metrics = MaskMetrics()
    for stop in (50, 55, 65, 75, 85, 95):  # IoU 0.50, 0.55, ..., 0.95 with the whole strip
        metrics.add(strip(0, stop), strip(0, 100))
    assert metrics.precision == {
        "Pr@50": 5 / 6,
        "Pr@60": 4 / 6,
        "Pr@70": 3 / 6,
        "Pr@80": 2 / 6,
        "Pr@90": 1 / 6,
    }


def test_empty_masks() -> None:
    empty, full = strip(0, 0), strip(0, 100)
    assert MaskMetrics().add(empty, empty) == 1.0
    assert MaskMetrics().add(empty, full) == 0.0
    assert MaskMetrics().add(full, empty) == 0.0


def test_nothing_measured_is_nan() -> None:
    assert math.isnan(MaskMetrics().mean_iou)
    assert math.isnan(MaskMetrics().overall_iou)
    assert all(math.isnan(share) for share in MaskMetrics().precision.values())


def test_other_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        MaskMetrics().add(np.zeros((4, 5), bool), np.zeros((4, 6), bool))


def test_merged_parts_are_the_whole() -> None:
    pairs = [(strip(0, stop), strip(0, 100)) for stop in (10, 40, 55, 85, 95)]
    whole, parts = MaskMetrics(), [MaskMetrics() for _ in range(3)]
    for index, pair in enumerate(pairs):
        whole.add(*pair)
        parts[index // 2].add(*pair)
    # As they come from other processes.
    first, *others = [pickle.loads(pickle.dumps(part)) for part in parts]
    merged = first.merge(others)
    assert merged == whole
    assert merged.overall_iou == (10 + 40 + 55 + 85 + 95) / 500
    assert len(first.ious) == 2
    assert MaskMetrics().merge([whole, MaskMetrics()]) == whole
