"""Checking a bundle where it serves: what is found, what it is called, what needs no PyTorch."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from cris_deploy.backends import BackendName, Compute, Device
from cris_deploy.bundle import MANIFEST
from cris_deploy.bundle_check import CheckReport, check, worst_stage
from cris_deploy.deviation import Deviation, finite
from cris_deploy.errors import BackendError, BundleError, InputError
from cris_deploy.manifest import GraphName, Route, StageParity
from cris_export import cli
from tests import tiny_bundle as tiny

ROOT = Path(__file__).parents[2]
# The tensor of weights.bin that each stage alone uses.
STAGE_WEIGHTS = {
    GraphName.IMAGE_ENCODER: "mix4",
    GraphName.TEXT_ENCODER: "embedding",
    GraphName.MASK_DECODER: "project",
}


def run_check(bundle: Path, **options) -> CheckReport:
    return check(bundle, backend="onnxruntime", device="cpu", **options)


def test_a_sound_bundle_passes(tiny_bundle):
    report = run_check(tiny_bundle)
    assert report.passed
    assert report.finite
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
def test_a_changed_weight_names_its_stage(own_bundle, stage):
    tiny.change_weights(own_bundle, STAGE_WEIGHTS[stage], np.negative)
    report = run_check(own_bundle)
    assert not report.passed
    assert report.finite
    assert f"worst stage {stage}" in report.problem
    assert "0.png" in report.problem
    for found in report.stages:
        # The others are as they were.
        assert (found.relative_error > 0.1) == (found.stage is stage)
        assert (found.logit_error > 0.1) == (found.stage is stage)


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


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("stage", list(STAGE_WEIGHTS))
def test_nan_has_its_own_words(own_bundle, stage, value):
    tiny.change_weights(own_bundle, STAGE_WEIGHTS[stage], lambda w: np.full_like(w, value))
    report = run_check(own_bundle, min_iou=0.0)  # a mask of NaN is empty, and any IoU would do
    assert not report.passed
    assert not report.finite
    assert "of 2 samples hold NaN or infinity" in report.problem
    assert f"begin in {stage}" in report.problem
    assert report.routes[0].max_logit_error is None


def test_nan_that_does_not_reach_the_logits(own_bundle):
    """Of a feature that the decoder happens to drop: still a fault."""
    for name in ("mask_decoder.onnx", "full.onnx"):
        graph = onnx.load(own_bundle / name, load_external_data=False)
        (join,) = [node for node in graph.graph.node if node.op_type == "Concat"]
        join.input[:] = ["f3", "f4", "f4", "f4"]
        onnx.save(graph, own_bundle / name)
    tiny.write_answers(own_bundle)
    tiny.rehash(own_bundle)
    assert run_check(own_bundle).passed
    tiny.change_weights(own_bundle, "mix5", lambda w: np.full_like(w, np.nan))
    report = run_check(own_bundle)
    assert report.problem == "the outputs of image_encoder hold NaN or infinity"
    assert not report.finite


def test_budget_is_held_against_the_mean(own_bundle):
    tiny.change_weights(own_bundle, "mix3", lambda w: 1.3 * w)
    report = run_check(own_bundle, min_iou=0.0)
    assert report.passed
    measured = min(route.mean_iou for route in report.routes)
    assert min(route.worst_iou for route in report.routes) < measured < 1.0
    assert run_check(own_bundle, min_iou=measured).passed
    above = run_check(own_bundle, min_iou=float(np.nextafter(measured, 1)))
    assert not above.passed
    assert "below the budget" in above.problem


def test_budget_is_the_bundles_own_by_default(own_bundle):
    path = own_bundle / MANIFEST
    document = json.loads(path.read_text())
    document["parity"]["min_iou"] = 0.25
    path.write_text(json.dumps(document))
    assert run_check(own_bundle).min_iou == 0.25
    assert run_check(own_bundle, min_iou=0.5).min_iou == 0.5
    document["parity"] = None
    path.write_text(json.dumps(document))
    assert run_check(own_bundle).min_iou == 0.99


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
    with pytest.raises(BackendError, match="int8"):
        run_check(tiny_bundle, precision="int8")
    path = own_bundle / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "samples": []}))
    with pytest.raises(BundleError, match="no samples"):
        run_check(own_bundle)


def test_console(own_bundle, capsys):
    command = ["--check", str(own_bundle), "--backend", "onnxruntime", "--device", "cpu"]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    for expected in ("onnxruntime", "0.png: a cat", "full graph", "mask_decoder", "passed"):
        assert expected in text
    tiny.change_weights(own_bundle, "mix4", np.negative)
    assert cli.main(command) == 1
    output = capsys.readouterr()
    assert "FAILED" in output.out
    assert "worst stage image_encoder" in output.err
    assert cli.main([*command, "--min-iou", "0"]) == 0
    tiny.change_weights(own_bundle, "mix4", lambda w: np.full_like(w, np.nan))
    assert cli.main([*command, "--min-iou", "0"]) == 1
    output = capsys.readouterr()
    assert "NaN" in output.out
    assert "begin in image_encoder" in output.err


def test_console_json(own_bundle, capsys):
    command = ["--check", str(own_bundle), "--backend", "onnxruntime", "--device", "cpu", "--json"]
    assert cli.main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True
    assert document["choice"]["backend"] == "onnxruntime"
    assert {route["route"] for route in document["routes"]} == {"stages", "full"}
    tiny.change_weights(own_bundle, "project", lambda w: np.full_like(w, np.inf))
    assert cli.main(command) == 1

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert document["passed"] is False
    assert document["routes"][0]["max_logit_error"] is None
    assert "infinity" in document["problem"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--backend", "abacus"], "abacus"),
        (["--backend", "onnxruntime", "--device", "cpu", "--precision", "int8"], "int8"),
        (["--min-iou", "2"], "min_iou"),
    ],
)
def test_console_unusable_backend(tiny_bundle, capsys, flags, said):
    assert cli.main(["--check", str(tiny_bundle), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--check BUNDLE"),
        (["--ckpt", "x.pth", "--check", "x.bundle"], "--ckpt FILE"),
        (["--ckpt", "x.pth", "--backend", "openvino"], "--backend goes with --check"),
        (["--ckpt", "x.pth", "--json"], "--json goes with --check"),
    ],
)
def test_console_misuse(capsys, flags, said):
    with pytest.raises(SystemExit) as stop:
        cli.main(flags)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_console_needs_nothing_of_an_export(tiny_bundle):
    """A machine that serves has neither PyTorch nor onnx."""
    code = f"""
import sys
for name in ("torch", "torchvision", "open_clip", "onnx", "onnxscript", "onnx_ir", "nncf"):
    sys.modules[name] = None  # importing it raises ImportError
from cris_export.cli import main
sys.exit(main(["--check", {str(tiny_bundle)!r}, "--backend", "onnxruntime", "--device", "cpu"]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "passed" in result.stdout


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


def test_reports_are_plain_data(tiny_bundle):
    json.dumps(dataclasses.asdict(run_check(tiny_bundle).proof(required=False)))
