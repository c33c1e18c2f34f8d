"""Weights that are not those that were exported, and those that cannot be read."""

import hashlib

import numpy as np
import onnx
import pytest

from cris_deploy.bundle.fingerprints import changed_weights, fingerprint
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.errors import BundleError
from cris_deploy.proof.gate import (
    Bound,
)
from tests.helpers import tiny_bundle as tiny
from tests.helpers.tiny_check import STAGE_WEIGHTS, run_check


@pytest.mark.parametrize("stage", list(STAGE_WEIGHTS))
@pytest.mark.parametrize("noise", [0.05, 1e-7])
def test_a_weight_that_changed_after_the_export_names_its_layer(own_bundle, stage, noise):
    """However little: what the logits do not show, the weight's own hash does."""
    random = np.random.default_rng(0)
    tensor = STAGE_WEIGHTS[stage]
    tiny.change_weights(
        own_bundle, tensor, lambda w: w * random.normal(1, noise, w.shape), recorded=False
    )
    report = run_check(own_bundle)
    assert report.missed is (Bound.MASK_IOU if noise == 0.05 else Bound.WEIGHTS)
    (changed,) = report.changed  # of the full graph, which has the same, it is not said again
    assert (changed.graph, changed.tensor) == (stage, tensor)
    layer = {"mix4": "Conv node_c4", "embedding": "Gather node_embedded"}.get(
        tensor, "MatMul node_kernel"
    )
    assert changed.layer == layer
    assert f"the weights of {layer} of {stage} ({tensor})" in report.problem
    # Without the hashes the weights are looked at if something else is wrong.
    unverified = run_check(own_bundle, verify=False)
    assert unverified.changed == (report.changed if noise == 0.05 else ())


def test_two_weights_that_changed_into_the_same_are_both_named(tmp_path):
    both = [onnx.TensorProto(name=name, data_type=1, raw_data=b"1234") for name in ("v", "w")]
    model = onnx.ModelProto(graph=onnx.GraphProto(initializer=both))
    (tmp_path / "x.onnx").write_bytes(model.SerializeToString())
    recorded = {GraphName.MASK_DECODER: {"v": "0" * 64, "w": "1" * 64}}
    changed = changed_weights(tmp_path, {GraphName.MASK_DECODER: "x.onnx"}, recorded)
    assert [weight.tensor for weight in changed] == ["v", "w"]


def test_weights_that_are_gone_or_new_are_changed(own_bundle):
    path = own_bundle / "mask_decoder.onnx"
    graph = onnx.load(path, load_external_data=False)
    (one,) = [tensor for tensor in graph.graph.initializer if tensor.name == "one"]
    one.name = "unit"
    (node,) = [node for node in graph.graph.node if "one" in node.input]
    node.input[0] = "unit"
    onnx.save(graph, path)
    tiny.rehash(own_bundle)
    report = run_check(own_bundle)
    assert report.missed is Bound.WEIGHTS
    assert {(str(weight), weight.graph) for weight in report.changed} == {
        ("Sub node_kept of mask_decoder (unit)", GraphName.MASK_DECODER),
        ("no layer of mask_decoder (one)", GraphName.MASK_DECODER),
    }
    assert "and 1 more are not those that were exported" in report.problem


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"\x00\xff" + data,
        lambda data: data.replace(b"weights.bin", b"/etc/passwd"),
        lambda data: data.replace(b"weights.bin", b"absent_file"),
    ],
    ids=["cut", "no-onnx", "elsewhere", "missing"],
)
def test_graphs_whose_weights_cannot_be_read(own_bundle, damage):
    path = own_bundle / "mask_decoder.onnx"
    path.write_bytes(damage(path.read_bytes()))
    files = {name: f"{name}.onnx" for name in GraphName}
    with pytest.raises(BundleError, match="export it again"):
        fingerprint(own_bundle, files)


def test_weights_beyond_their_file(own_bundle):
    (own_bundle / "weights.bin").write_bytes(b"\x00" * 100)
    with pytest.raises(BundleError, match=r"weights\.bin.*bytes from"):
        fingerprint(own_bundle, {GraphName.FULL: "full.onnx"})


@pytest.mark.parametrize("location", ["../weights.bin", "{outside}/weights.bin"])
def test_a_weight_in_a_file_outside(tmp_path, location):
    (tmp_path / "weights.bin").write_bytes(b"1234")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"1234")
    full = outside(folder, {"location": location.format(outside=tmp_path)})
    with pytest.raises(BundleError, match="it is no file of the bundle"):
        fingerprint(folder, full)


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ({}, b"1234"),
        ({"offset": 2}, b"34"),
        ({"length": 3}, b"123"),
        ({"offset": 2, "length": 0}, b""),
    ],
)
def test_a_weight_whose_place_is_not_wholly_told(tmp_path, place, part):
    (tmp_path / "weights.bin").write_bytes(b"1234")
    full = outside(tmp_path, {"location": "weights.bin", **place})
    assert fingerprint(tmp_path, full) == {GraphName.FULL: {"w": hashlib.sha256(part).hexdigest()}}


def outside(folder, place):
    """Write a graph that has one weight, "w", in another file."""
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=1)
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    graph = onnx.GraphProto(initializer=[tensor])
    (folder / "full.onnx").write_bytes(onnx.ModelProto(graph=graph).SerializeToString())
    return {GraphName.FULL: "full.onnx"}


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (2, -1), (0, 5), (4, 1)])
def test_a_weight_at_no_place_of_its_file(tmp_path, offset, length):
    (tmp_path / "weights.bin").write_bytes(b"1234")
    full = outside(tmp_path, {"location": "weights.bin", "offset": offset, "length": length})
    with pytest.raises(BundleError, match=rf"it has no {length} bytes from {offset} on"):
        fingerprint(tmp_path, full)


@pytest.mark.parametrize(
    "tensor",
    [
        b"\x42\x01w\x05",  # a field without a number
        b"\x42\x01w\x4e",  # a field of a kind that there is none
        b"\x42\x01w\x6a\x03\x0a\x01\xff",  # the key of external data is no text
    ],
)
def test_a_weight_that_is_no_message(tmp_path, tensor):
    graph = bytes([0x2A, len(tensor)]) + tensor
    (tmp_path / "full.onnx").write_bytes(bytes([0x3A, len(graph)]) + graph)
    with pytest.raises(BundleError, match=r"full\.onnx cannot be read as ONNX"):
        fingerprint(tmp_path, {GraphName.FULL: "full.onnx"})


def test_of_a_name_given_twice_the_last_counts(tmp_path):
    """As protocol buffers' readers take it, so that no runtime reads another weight than we."""
    tensor = b"\x42\x01v\x42\x01w\x40\x05\x4a\x01\x07"  # then one that is a number, and none
    graph = bytes([0x2A, len(tensor)]) + tensor
    model = bytes([0x3A, len(graph)]) + graph
    (tmp_path / "full.onnx").write_bytes(model)
    assert [w.name for w in onnx.ModelProto.FromString(model).graph.initializer] == ["w"]
    digest = hashlib.sha256(b"\x07").hexdigest()
    assert fingerprint(tmp_path, {GraphName.FULL: "full.onnx"}) == {GraphName.FULL: {"w": digest}}
