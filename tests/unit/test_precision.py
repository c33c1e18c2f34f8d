"""Typing a graph as float16: on hand-made graphs of a few nodes."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cris_deploy.errors import ExportError
from cris_export.precision import to_float16, type_share

F32, F16 = TensorProto.FLOAT, TensorProto.FLOAT16


def model(nodes, inputs, outputs, weights) -> ir.Model:
    graph = helper.make_graph(
        nodes, "test", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in weights.items()]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def value(name, shape, dtype=F32):
    return helper.make_tensor_value_info(name, dtype, shape)


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {v.name: v.type.tensor_type.elem_type for v in values}


def checked(typed: ir.Model) -> onnx.ModelProto:
    proto = ir.to_proto(typed)
    # Full check infers all types: a forgotten Cast is an error here.
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_matmul_is_half_and_norm_is_single() -> None:
    weights = {
        "w": np.eye(4, dtype=np.float32),
        "scale": np.ones(4, np.float32),
        "shift": np.zeros(4, np.float32),
    }
    typed = model(
        [
            helper.make_node("MatMul", ["image", "w"], ["a"]),
            helper.make_node("LayerNormalization", ["a", "scale", "shift"], ["b"]),
            helper.make_node("Relu", ["b"], ["c"]),
        ],
        [value("image", [2, 4])],
        [value("c", [2, 4])],
        weights,
    )
    to_float16(typed)
    proto = checked(typed)
    types = element_types(proto)
    assert (types["image"], types["a"], types["b"], types["c"]) == (F32, F16, F32, F16)
    stored = {i.name: i.data_type for i in proto.graph.initializer}
    assert stored == {"w_float16": F16, "scale": F32, "shift": F32}
    share = type_share(typed)
    # MatMul and Relu, and the three casts in and out of the island
    assert share.nodes == {"float16": 4, "float": 2}


def test_large_activations_survive_the_norm() -> None:
    """The reason of the rule: squares of 300 do not fit float16, their norm does."""
    typed = model(
        [helper.make_node("LayerNormalization", ["x", "scale"], ["y"])],
        [value("x", [1, 64])],
        [value("y", [1, 64])],
        {"scale": np.ones(64, np.float32)},
    )
    to_float16(typed)
    session = onnxruntime.InferenceSession(checked(typed).SerializeToString())
    x = np.linspace(-300, 300, 64, dtype=np.float16)[None]
    (y,) = session.run(None, {"x": x})
    expected = (x - x.mean()) / x.astype(np.float64).std()
    np.testing.assert_allclose(y, expected, atol=2e-3)  # float16 has 11 bits


def test_resize_keeps_its_scales_in_single() -> None:
    typed = model(
        [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear")],
        [value("x", [1, 1, 2, 2])],
        [value("y", [1, 1, 4, 4])],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    )
    to_float16(typed)
    proto = checked(typed)
    assert element_types(proto)["y"] == F16
    assert {i.name: i.data_type for i in proto.graph.initializer} == {"scales": F32}


def test_kept_output_keeps_name_and_type() -> None:
    typed = model(
        [helper.make_node("Relu", ["x"], ["logits"])],
        [value("x", [2])],
        [value("logits", [2])],
        {},
    )
    to_float16(typed, keep_outputs=frozenset({"logits"}))
    proto = checked(typed)
    assert [o.name for o in proto.graph.output] == ["logits"]
    assert element_types(proto)["logits"] == F32
    assert element_types(proto)["x"] == F16


def test_a_tensor_is_cast_once() -> None:
    typed = model(
        [
            helper.make_node("Relu", ["image"], ["a"]),
            helper.make_node("Neg", ["image"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["c"]),
        ],
        [value("image", [2])],
        [value("c", [2])],
        {},
    )
    to_float16(typed)
    assert [n.op_type for n in checked(typed).graph.node].count("Cast") == 1


def test_integers_and_bools_are_left_alone() -> None:
    typed = model(
        [
            helper.make_node("Equal", ["tokens", "zero"], ["padding"]),
            helper.make_node("Where", ["padding", "low", "high"], ["y"]),
        ],
        [value("tokens", [3], TensorProto.INT64)],
        [value("padding", [3], TensorProto.BOOL), value("y", [3])],
        {
            "zero": np.array(0, np.int64),
            "low": np.array(-np.inf, np.float32),
            "high": np.array(0, np.float32),
        },
    )
    to_float16(typed)
    types = element_types(checked(typed))
    assert (types["tokens"], types["padding"], types["y"]) == (
        TensorProto.INT64,
        TensorProto.BOOL,
        F16,
    )


def test_weight_beyond_the_range_is_named() -> None:
    typed = model(
        [helper.make_node("Mul", ["x", "huge"], ["y"])],
        [value("x", [2])],
        [value("y", [2])],
        {"huge": np.array([1e5, 1], np.float32)},
    )
    with pytest.raises(ExportError, match="huge"):
        to_float16(typed)
