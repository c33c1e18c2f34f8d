"""Graphs read their weights from files that the manifest covers, or not at all."""

import shutil
from pathlib import Path

import onnx
import pytest

from cris_deploy.bundle.external_data import locations
from cris_deploy.bundle.reading import (
    WEIGHTS,
    Bundle,
)
from cris_deploy.errors import BundleError
from tests.helpers import tiny_bundle as tiny


def store_elsewhere(bundle: Path, location: str) -> None:
    """Let one tensor of the mask decoder lie in another file, and write its hash."""
    path = bundle / "mask_decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, path)
    tiny.rehash(bundle)


@pytest.mark.parametrize("location", ["other.bin", "engines/x.plan", "../w.bin", "/etc/passwd"])
def test_weights_in_a_file_that_no_hash_covers(own_bundle, location):
    shutil.copy(own_bundle / WEIGHTS, own_bundle / "other.bin")
    store_elsewhere(own_bundle, location)
    message = rf"mask_decoder.onnx reads weights from '{location}', which manifest.json does not"
    for verify in (True, False):
        with pytest.raises(BundleError, match=message):
            Bundle.open(own_bundle, verify=verify)


def test_external_data_is_found_wherever_a_graph_may_have_it():
    def outside(location: str) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name="x", data_type=1, dims=[1])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="offset", value="0")
        tensor.external_data.add(key="location", value=location)
        tensor.external_data.add(key="note", value="location")  # which names no file
        return tensor

    make, sparse = onnx.helper.make_node, onnx.SparseTensorProto
    body = onnx.helper.make_graph([make("Constant", [], ["y"], value=outside("e"))], "b", [], [])
    nodes = [
        make("Constant", [], ["x"], value=outside("a")),
        make("Loop", ["x"], ["z"], body=body),
        make("Own", [], ["s"], many=[outside("f"), outside("g")]),
        make("Own", [], ["s"], one=sparse(values=outside("h"), indices=outside("i"))),
    ]
    graph = onnx.helper.make_graph(nodes, "location", [], [], [outside("b")])
    graph.sparse_initializer.append(sparse(values=outside("c"), indices=outside("d")))
    function = onnx.helper.make_function(
        "own", "F", [], [], [make("Constant", [], ["q"], value=outside("j"))], []
    )
    model = onnx.helper.make_model(graph, functions=[function], doc_string="location")
    for letter, graph in (("k", "initialization"), ("l", "algorithm")):
        getattr(model.training_info.add(), graph).initializer.append(outside(letter))
    function.attribute_proto.append(onnx.helper.make_attribute("x", outside("m")))
    node = onnx.NodeProto(op_type="Own")
    inner = onnx.helper.make_graph([], "g", [], [], [outside("n")])
    node.attribute.append(onnx.helper.make_attribute("graphs", [inner]))
    more = [sparse(values=outside("o"), indices=outside("p"))]
    node.attribute.append(onnx.helper.make_attribute("sparse", more))
    model.graph.node.append(node)
    model.functions.append(function)
    assert locations(model.SerializeToString()) == set("abcdefghijklmnop")


def test_a_number_of_eight_bytes_is_no_key():
    """Protocol buffers' readers skip a field of another kind than its own."""
    entry = b"\x09location\x12\x01x"  # field 1 as a number, then the value
    message = entry
    for tag in (0x6A, 0x2A, 0x3A):  # entry of a tensor of a graph of a model
        message = bytes([tag, len(message)]) + message
    assert onnx.ModelProto.FromString(message).graph.initializer[0].external_data[0].key == ""
    assert locations(message) == set()


def test_a_graph_inside_another_without_end():
    # Three messages each: graph, node, attribute. The innermost graph is the 64th.
    assert locations(_inside_21_graphs([])) == set()
    with pytest.raises(ValueError, match="too deep"):
        locations(_inside_21_graphs([onnx.helper.make_node("location", [], [])]))


def _inside_21_graphs(nodes: list[onnx.NodeProto]) -> bytes:
    graph = onnx.helper.make_graph(nodes, "location", [], [])
    for _ in range(21):
        node = onnx.helper.make_node("Loop", [], [], body=graph)
        graph = onnx.helper.make_graph([node], "outer", [], [])
    return onnx.helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize(
    "content", [b"not a graph", b"\x3a\xff", b"\x3a\x05ab", b"\xff" * 12, b"\x3b", bytes(9)]
)
def test_a_graph_that_is_no_protobuf(own_bundle, content):
    (own_bundle / "full.onnx").write_bytes(content)
    tiny.rehash(own_bundle)
    with pytest.raises(BundleError, match=r"full.onnx is not an ONNX file"):
        Bundle.open(own_bundle)
