"""Shares of types: counted by hand on graphs of a few nodes."""

import numpy as np
import onnx
import pytest

from cris_deploy.bundle.manifest import NumberType
from cris_export.errors import ExportError
from cris_export.precision.shares import infer, multiply_adds, type_share
from tests.helpers.onnx_graphs import graph, node, value


def test_multiply_adds_by_hand() -> None:
    proto = graph(
        [
            node("Conv", ["x", "conv"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
            node("Conv", ["a", "depth"], ["b"], group=4),
            node("ConvTranspose", ["b", "up"], ["c"], strides=[2, 2]),
            node("Reshape", ["c", "rows"], ["d"]),
            node("MatMul", ["d", "w"], ["e"]),
        ],
        [value("x", ["batch", 3, 8, 8])],
        [value("e", ["rows", 5])],
        {
            "conv": np.zeros((4, 3, 3, 3), np.float32),
            "depth": np.zeros((4, 1, 3, 3), np.float32),
            "up": np.zeros((4, 2, 2, 2), np.float32),
            "rows": np.array([-1, 16], np.int64),
            "w": np.zeros((16, 5), np.float32),
        },
    )
    counted = {
        n.name: multiply_adds(n, infer(proto).shapes)
        for n in proto.graph.node
        if n.op_type != "Reshape"
    }
    assert counted == {
        "a": 4 * 4 * 4 * (3 * 9),  # 4 x 4 x 4 results of 27 products each
        "b": 4 * 2 * 2 * 9,
        "c": 4 * 2 * 2 * (2 * 4),  # each of the 16 inputs goes to 2 channels of 2 x 2
        "e": 2 * 5 * 16,
    }
    gemm = node("Gemm", ["a", "b"], ["c"], transA=1)
    assert multiply_adds(gemm, {"a": (16, 2), "b": (16, 5), "c": (2, 5)}) == 2 * 5 * 16
    assert type_share(proto).multiply_adds == {NumberType.FLOAT32: sum(counted.values())}


def test_a_product_without_shape_is_an_error() -> None:
    with pytest.raises(ExportError, match="no shape"):
        multiply_adds(node("MatMul", ["a", "b"], ["c"]), {"a": (2, 2)})


def test_int8_needs_both_inputs_dequantised() -> None:
    def pair(name: str) -> list[onnx.NodeProto]:
        return [
            node("QuantizeLinear", [name, "step", "zero"], [f"{name}q"]),
            node("DequantizeLinear", [f"{name}q", "step", "zero"], [f"{name}dq"]),
        ]

    proto = graph(
        [
            *pair("x"),
            node("DequantizeLinear", ["w", "step", "zero"], ["wdq"]),
            node("MatMul", ["xdq", "wdq"], ["a"]),
            node("MatMul", ["a", "wdq"], ["y"]),
        ],
        [value("x", ["batch", 4])],
        [value("y", ["batch", 4])],
        {
            "w": np.ones((4, 4), np.int8),
            "step": np.array(0.1, np.float32),
            "zero": np.array(0, np.int8),
        },
    )
    share = type_share(proto, {"y": "range"})
    assert share.multiply_adds == {NumberType.INT8: 16, NumberType.FLOAT32: 16}
    assert share.nodes == {NumberType.INT8: 1, NumberType.FLOAT32: 1}
    assert share.weight_bytes == {NumberType.INT8: 16 + 1, NumberType.FLOAT32: 4}
    assert share.conversions == 3
    assert share.islands == {"y": "range"}
