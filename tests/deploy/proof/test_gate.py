"""What a bundle is held to: budgets of masks, logits, stages, and samples that show something."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cris_deploy.bundle.manifest import GraphName, Precision, Route, StageParity
from cris_deploy.bundle.reading import MANIFEST, Bundle
from cris_deploy.execution.backends import Compute
from cris_deploy.pixels.mask import mask_from_logits
from cris_deploy.proof.deviation import Deviation, finite
from cris_deploy.proof.gate import (
    Bound,
    Budget,
    SampleCheck,
    budget_of,
    is_visible,
    logit_budgets,
    route_parities,
    visible_share,
    worst_stage,
)
from tests.helpers import tiny_bundle as tiny
from tests.helpers.tiny_check import STAGE_WEIGHTS, drop_a_feature, run_check


def test_worst_stage():
    image, text, decoder = STAGE_WEIGHTS
    errors = [StageParity(image, 0.9, 9.0, 0.01), StageParity(text, 0.2, 1.0, 0.03)]
    # Errors of different tensors do not compare; what they do to the logits does.
    assert worst_stage([*errors, StageParity(decoder, 0.02, 0.1, 0.02)]).stage is text
    broken = StageParity(decoder, None, None, None)
    assert worst_stage([*errors, broken]) is broken
    # What NaN went into is not to blame.
    first = StageParity(image, None, None, None)
    assert worst_stage([first, errors[1], broken]) is first
    # Finite, and yet the decoder makes NaN of it.
    assert worst_stage([StageParity(image, 0.9, 9.0, None), errors[1]]).stage is image
    assert worst_stage([]) is None


def test_budget_is_held_against_the_mean(own_bundle):
    tiny.change_weights(own_bundle, "mix3", lambda w: 1.3 * w)
    report = run_check(own_bundle, min_iou=0.0, max_logit_error=9.0)
    assert report.passed
    measured = min(route.mean_iou for route in report.routes)
    assert min(route.worst_iou for route in report.routes) < measured < 1.0
    assert run_check(own_bundle, min_iou=measured, max_logit_error=9.0).passed
    above = run_check(own_bundle, min_iou=float(np.nextafter(measured, 1)), max_logit_error=9.0)
    assert above.missed is Bound.MASK_IOU
    assert "below the budget" in above.problem


def test_logits_are_held_to_a_budget_in_the_worst_sample(own_bundle):
    tiny.change_weights(own_bundle, "mix3", lambda w: 1.001 * w)
    report = run_check(own_bundle)
    assert report.missed is Bound.LOGIT_ERROR
    assert "worst stage image_encoder" in report.problem
    assert min(route.mean_iou for route in report.routes) > 0.999  # no mask shows it
    measured = max(route.worst_relative_error for route in report.routes)
    assert max(stage.relative_error for stage in report.stages) < measured
    assert max(sample.relative_error for sample in report.samples) == measured
    assert all(route.mean_relative_error < route.worst_relative_error for route in report.routes)
    assert run_check(own_bundle, max_logit_error=measured).passed
    above = run_check(own_bundle, max_logit_error=float(np.nextafter(measured, 0)))
    assert above.missed is Bound.LOGIT_ERROR
    assert "above the budget" in above.problem


def test_outputs_of_stages_are_held_to_a_budget_in_float32(own_bundle):
    """A feature that no logit needs: the decoder reads it where another should be."""
    drop_a_feature(own_bundle)
    tiny.change_weights(own_bundle, "mix5", lambda w: 1.001 * w)
    report = run_check(own_bundle)
    assert report.missed is Bound.STAGE_ERROR
    assert max(route.worst_relative_error for route in report.routes) < 1e-5
    assert "the outputs of image_encoder are off by 0.001" in report.problem
    assert "worst stage image_encoder" in report.problem
    (measured,) = [
        stage.relative_error for stage in report.stages if stage.stage is GraphName.IMAGE_ENCODER
    ]
    assert run_check(own_bundle, max_logit_error=measured).passed
    above = run_check(own_bundle, max_logit_error=float(np.nextafter(measured, 0)))
    assert above.missed is Bound.STAGE_ERROR


def test_what_rounds_has_no_budget_for_stages(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    assert budget_of(manifest, Compute.FP32, None, 0.5) == Budget(0.99, 0.5, 0.5)
    assert budget_of(manifest, Compute.BF16, None, 0.5) == Budget(0.99, 0.5, None)
    half = dataclasses.replace(manifest, precision=Precision.FP16)
    assert budget_of(half, Compute.FP32, 0.5, None) == Budget(0.5, 0.06, None)
    int8 = dataclasses.replace(manifest, precision=Precision.INT8, parity=None)
    for compute in (Compute.INT8, Compute.INT8_BF16, Compute.FP16):  # the last in no table
        assert budget_of(int8, compute, 0.5, None) == Budget(0.5, 0.5, None)


def test_relative_error_is_over_the_deviation_of_the_logits(own_bundle):
    """A constant far from zero makes no error smaller."""
    before = run_check(own_bundle).samples
    for sample in tiny.SAMPLES:
        logits = np.load(own_bundle / sample.logits)
        np.save(own_bundle / sample.logits, logits + np.float32(0.1))
    tiny.rehash(own_bundle)
    report = run_check(own_bundle, min_iou=0.0, max_logit_error=9.0)
    for sample, reference in zip(report.samples, before, strict=True):
        index = [each.expression for each in tiny.SAMPLES].index(sample.expression)
        spread = np.load(own_bundle / tiny.SAMPLES[index].logits).std(dtype=np.float64)
        assert sample.relative_error == pytest.approx(0.1 / spread, rel=1e-3)
        assert reference.relative_error < 1e-5


def set_logits(bundle: Path, *offsets: float) -> None:
    """Move the reference logits of each sample; `inf` makes its mask full and `-inf` empty."""
    for sample, offset in zip(tiny.SAMPLES, offsets, strict=True):
        logits = np.load(bundle / sample.logits)
        moved = np.full_like(logits, np.sign(offset) * 50) if np.isinf(offset) else logits + offset
        np.save(bundle / sample.logits, moved)
    tiny.rehash(bundle)


@pytest.mark.parametrize("offset", [-np.inf, np.inf])
def test_a_gate_with_nothing_to_see_fails(own_bundle, offset):
    """Whatever the budgets; one mask that is neither empty nor full is enough."""
    set_logits(own_bundle, offset, 0.0)
    report = run_check(own_bundle, min_iou=0.0, max_logit_error=1e9)
    assert report.passed
    assert report.visible_share == 0.5
    set_logits(own_bundle, offset, offset)
    report = run_check(own_bundle, min_iou=0.0, max_logit_error=1e9)
    assert report.missed is Bound.VISIBLE
    assert report.visible_share == 0.0
    counts = "2 are empty and 0 full" if offset < 0 else "0 are empty and 2 full"
    assert f"2 masks {counts}" in report.problem
    assert "--samples FILE" in report.problem


@pytest.mark.parametrize("size", [(400, 400), (90, 700), (700, 90), (17, 31)])
@pytest.mark.parametrize("level", [-0.7, -0.6, 0.0, 50.0])
def test_a_constant_map_shows_nothing(size, level):
    """Not even at the border, where filters fade out and ring; -0.62 is the threshold."""

    def visible() -> bool:
        return is_visible(logits, mask_from_logits(logits, *size, 64, 0.35), 64, 0.35)

    logits = np.full((16, 16), level, np.float32)
    if size == (400, 400):
        share = mask_from_logits(logits, *size, 64, 0.35).mean()
        assert 0.0 < share < 1.0 or level == 50.0  # of what is empty, and of what is full
    assert not visible()
    logits[6:10, 6:10] = 3.0 if level < -0.62 else -3.0  # amid the picture
    assert visible()
    logits[:] = level
    height, width = size
    beside = np.s_[:5] if height < width else np.s_[:, :5]
    logits[beside] = 3.0 if level < -0.62 else -3.0  # in the padding, or at the picture's edge
    assert visible() == (size not in {(90, 700), (700, 90)})


def test_masks_that_are_both_empty_do_not_raise_the_mean(own_bundle):
    """And a mask where none should be lowers it, though PyTorch's cannot be seen."""

    def sample(iou: float, area: float) -> SampleCheck:
        return SampleCheck(Route.STAGES, "a.png", "a", iou, 0.0, 0.0, area, 0.0 < area < 1.0)

    (route,) = route_parities([sample(0.8, 0.3), sample(1.0, 0.0), sample(1.0, 1.0)])
    assert (route.mean_iou, route.worst_iou) == (0.8, 0.8)
    (route,) = route_parities([sample(0.8, 0.3), sample(0.0, 0.0)])
    assert (route.mean_iou, route.worst_iou) == (0.4, 0.0)
    (route,) = route_parities([sample(0.8, 0.3), sample(0.9, 1.0)])
    assert route.mean_iou == pytest.approx(0.85)
    assert visible_share([sample(0.8, 0.3), sample(0.0, 0.0)]) == 0.5


def test_budget_is_the_bundles_own_by_default(own_bundle):
    path = own_bundle / MANIFEST
    document = json.loads(path.read_text())
    document["parity"]["min_iou"] = 0.25
    document["parity"]["logit_budgets"] = {"fp32": 0.125, "bf16": 0.5}
    path.write_text(json.dumps(document))
    report = run_check(own_bundle)
    assert (report.min_iou, report.logit_budget) == (0.25, 0.125)
    report = run_check(own_bundle, min_iou=0.5, max_logit_error=0.75)
    assert (report.min_iou, report.logit_budget) == (0.5, 0.75)
    document["parity"]["logit_budgets"] = {"bf16": 0.5}
    path.write_text(json.dumps(document))
    default = logit_budgets(Precision.FP32)[Compute.FP32]
    assert run_check(own_bundle).logit_budget == default
    document["parity"] = None
    path.write_text(json.dumps(document))
    report = run_check(own_bundle)
    assert (report.min_iou, report.logit_budget) == (0.99, default)


def test_deviation():
    reference = np.array([3.0, -4.0])
    assert Deviation.of(reference, reference) == Deviation(0.0, 0.0)
    found = Deviation.of(np.array([3.0, -3.0]), reference)
    assert found.relative == pytest.approx(1 / 5)
    assert found.largest == 1.0
    scaled = Deviation.of(np.array([3.0, -3.0]), reference, scale=10 * reference)
    assert scaled.relative == pytest.approx(1 / 50)
    assert Deviation.of(np.ones(2), np.zeros(2)).relative == 1.0
    masks = np.array([True, False]), np.array([True, True])
    assert Deviation.of(*masks).largest == 1.0
    for bad in (np.nan, np.inf):
        assert finite(Deviation.of(np.array([bad, 0.0]), reference).relative) is None
    # float16's 65504 doubled: the difference is taken in a wider type
    large = np.array([-65504.0], np.float16)
    assert Deviation.of(large, -large).largest == 131008.0
    assert Deviation.worst([Deviation(1.0, 2.0), Deviation(3.0, 1.0)]) == Deviation(3.0, 2.0)
    assert Deviation.worst([]) == Deviation()
