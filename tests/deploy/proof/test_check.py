"""Checking a bundle where it serves: what is found, what it is called, what needs no PyTorch."""

import dataclasses
import json

import numpy as np
import onnx
import pytest

from cris_deploy.bundle.manifest import Precision, Route
from cris_deploy.bundle.reading import MANIFEST
from cris_deploy.errors import BackendError, BundleError, InputError
from cris_deploy.execution.backends import BackendName, Compute, Device
from cris_deploy.proof.check import check
from cris_deploy.proof.gate import (
    Bound,
    logit_budgets,
)
from tests.helpers import tiny_bundle as tiny
from tests.helpers.tiny_check import STAGE_WEIGHTS, drop_a_feature, run_check


def test_a_sound_bundle_passes(tiny_bundle):
    report = run_check(tiny_bundle)
    assert report.passed
    assert report.missed is None
    assert report.changed == ()
    assert report.unproved == ()
    assert (report.choice.backend, report.choice.device, report.choice.compute) == (
        BackendName.ONNXRUNTIME,
        Device.CPU,
        Compute.FP32,
    )
    assert [route.route for route in report.routes] == [Route.STAGES, Route.FULL]
    assert len(report.samples) == 2 * len(tiny.SAMPLES)
    assert [stage.stage for stage in report.stages] == list(STAGE_WEIGHTS)
    for sample in report.samples:
        assert sample.iou == 1.0
        assert sample.logit_error < 1e-4  # batches of two sum in another order
    proof = report.proof(required=True)
    assert (proof.backend, proof.compute, proof.problem) == ("onnxruntime", "fp32", None)
    assert proof.stages == report.stages


@pytest.mark.parametrize("stage", list(STAGE_WEIGHTS))
def test_a_wrong_weight_names_its_stage(own_bundle, stage):
    tiny.change_weights(own_bundle, STAGE_WEIGHTS[stage], np.negative)
    report = run_check(own_bundle)
    assert not report.passed
    assert report.missed is Bound.MASK_IOU
    assert f"worst stage {stage}" in report.problem
    assert report.changed == ()  # it was exported like this
    assert "0.png" in report.problem
    for found in report.stages:
        # The others are as they were.
        assert (found.relative_error > 0.1) == (found.stage is stage)
        assert (found.logit_error > 0.1) == (found.stage is stage)


def test_a_bundle_of_an_earlier_version_is_checked_by_what_it_has(own_bundle):
    """No hashes of weights, no budgets of logits: those of this version hold."""
    path = own_bundle / MANIFEST
    document = json.loads(path.read_text())
    del document["weights"]
    for key in ("logit_budgets", "worst_relative_error", "mean_relative_error", "visible_share"):
        del document["parity"][key]
    for proof in document["parity"]["proofs"]:
        del proof["logit_budget"]
        for route in proof["routes"]:
            del route["worst_relative_error"], route["mean_relative_error"]
    path.write_text(json.dumps(document))
    report = run_check(own_bundle)
    assert report.passed
    assert report.logit_budget == logit_budgets(Precision.FP32)[Compute.FP32]
    tiny.change_weights(own_bundle, "mix4", lambda w: 1.05 * w, recorded=False)
    assert "worst stage image_encoder" in run_check(own_bundle).problem


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("stage", list(STAGE_WEIGHTS))
def test_nan_has_its_own_words(own_bundle, stage, value):
    tiny.change_weights(own_bundle, STAGE_WEIGHTS[stage], lambda w: np.full_like(w, value))
    report = run_check(own_bundle, min_iou=0.0)  # a mask of NaN is empty, and any IoU would do
    assert not report.passed
    assert report.missed is Bound.FINITE
    assert "of 2 samples hold NaN or infinity" in report.problem
    assert f"begin in {stage}" in report.problem
    assert report.routes[0].max_logit_error is None


def test_nan_that_does_not_reach_the_logits(own_bundle):
    """Of a feature that the decoder happens to drop: still a fault."""
    drop_a_feature(own_bundle)
    tiny.rehash(own_bundle)
    assert run_check(own_bundle).passed
    tiny.change_weights(own_bundle, "mix5", lambda w: np.full_like(w, np.nan))
    report = run_check(own_bundle)
    assert report.problem == "the outputs of image_encoder hold NaN or infinity"
    assert report.missed is Bound.FINITE


def test_changed_files_are_refused_before_anything_runs(own_bundle):
    data = bytearray((own_bundle / "weights.bin").read_bytes())
    data[0] ^= 1
    (own_bundle / "weights.bin").write_bytes(data)
    with pytest.raises(BundleError, match="was changed"):
        run_check(own_bundle)


def test_a_bundle_without_features_is_checked_end_to_end(own_bundle):
    path = own_bundle / MANIFEST
    document = json.loads(path.read_text())
    for sample in document["samples"]:
        sample["scene"] = sample["text"] = None
    path.write_text(json.dumps(document))
    report = run_check(own_bundle)
    assert report.passed
    assert report.stages == ()
    assert "export again" in report.unproved[0]
    tiny.change_weights(own_bundle, "mix4", np.negative)
    assert "below the budget" in run_check(own_bundle).problem


def test_a_full_graph_that_does_not_load_is_said(own_bundle):
    path = own_bundle / "full.onnx"
    path.write_bytes(path.read_bytes().replace(b"MatMul", b"MutMal"))
    tiny.rehash(own_bundle)
    report = run_check(own_bundle)
    assert report.passed
    assert [route.route for route in report.routes] == [Route.STAGES]
    assert report.unproved[0].startswith("full graph: onnxruntime")


def test_a_full_graph_that_differs_fails(own_bundle):
    path = own_bundle / "full.onnx"
    graph = onnx.load(path, load_external_data=False)
    (one,) = [tensor for tensor in graph.graph.initializer if tensor.name == "one"]
    one.CopyFrom(onnx.numpy_helper.from_array(np.array(-3, np.float32), "one"))
    onnx.save(graph, path)
    tiny.rehash(own_bundle)
    report = run_check(own_bundle)
    assert not report.passed
    assert "by the full graph" in report.problem
    assert "the stages meet it" in report.problem


@pytest.mark.parametrize("name", ["samples/scene0.npz", "samples/text0.npz"])
def test_features_that_cannot_be_read(own_bundle, name):
    with np.load(own_bundle / name) as arrays:
        good = dict(arrays)
    first = next(iter(good))
    for bad in (
        {k: v for k, v in good.items() if k != first},
        {**good, first: good[first][:, :1]},
        {**good, first: np.array([{"a": 1}], dtype=object)},
    ):
        np.savez(own_bundle / name, **bad)
        tiny.rehash(own_bundle)
        with pytest.raises(BundleError, match=f"{name}.*export it again"):
            run_check(own_bundle)
    (own_bundle / name).write_bytes(b"PK but no archive")
    tiny.rehash(own_bundle)
    with pytest.raises(BundleError, match=name):
        run_check(own_bundle)


def test_unusable_arguments(tiny_bundle, own_bundle):
    for value in (-0.1, 1.1, float("nan"), "0.9", True):
        with pytest.raises(InputError, match=r"min_iou is .*: give 0 to 1, or None"):
            run_check(tiny_bundle, min_iou=value)
    for name, value in (("step", None), ("verify", "no"), ("bundle", 3)):
        arguments = {"bundle": tiny_bundle, name: value}
        with pytest.raises(InputError, match=f"{name} is .*: give"):
            check(**arguments)
    for value in (-0.1, float("inf"), float("nan")):
        with pytest.raises(InputError, match="max_logit_error"):
            run_check(tiny_bundle, max_logit_error=value)
    with pytest.raises(BackendError, match="int8"):
        run_check(tiny_bundle, precision="int8")
    path = own_bundle / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "samples": []}))
    with pytest.raises(BundleError, match="no samples"):
        run_check(own_bundle)


def test_reports_are_plain_data(tiny_bundle):
    json.dumps(dataclasses.asdict(run_check(tiny_bundle).proof(required=False)))
