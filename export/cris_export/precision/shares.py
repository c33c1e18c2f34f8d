"""How much of a graph computes and is stored in which type: shown, not assumed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from cris_deploy.bundle.manifest import NumberType, TypeShare
from cris_export.errors import ExportError
from cris_export.precision.rules import PRODUCTS

_TYPES = {
    TensorProto.FLOAT: NumberType.FLOAT32,
    TensorProto.FLOAT16: NumberType.FLOAT16,
    TensorProto.INT8: NumberType.INT8,
    TensorProto.UINT8: NumberType.INT8,
}
_CONVERSIONS = frozenset({"Cast", "QuantizeLinear", "DequantizeLinear"})

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Inferred:
    """Shapes of a graph's values with all free dimensions 1, and their element types, by name."""

    shapes: Shapes
    elements: Mapping[str, int]


def type_share(proto: onnx.ModelProto, islands: Mapping[str, str] | None = None) -> TypeShare:
    """Count nodes, bytes of weights and multiply-adds per type, for one image and one expression.

    A product is int8 if both its inputs come straight from a DequantizeLinear, which is where
    runtimes take int8 kernels; any other node has the type of its first output. Conversions between
    types are counted apart, integer nodes (shapes, indices) not at all.

    Args:
        proto: The graph; its external weights are not read.
        islands: What to record as the float32 islands of a float16 graph: node -> rule.

    Raises:
        ExportError: the shape of a product's input or output cannot be inferred.
    """
    inferred = infer(proto)
    nodes: Counter[NumberType] = Counter()
    products: Counter[NumberType] = Counter()
    weights: Counter[NumberType] = Counter()
    producers = {output: node for node in proto.graph.node for output in node.output}
    conversions = 0
    for node in proto.graph.node:
        if node.op_type in _CONVERSIONS:
            conversions += 1
            continue
        number = _TYPES.get(inferred.elements.get(node.output[0], TensorProto.UNDEFINED))
        if number not in (NumberType.FLOAT32, NumberType.FLOAT16):
            continue
        if node.op_type in PRODUCTS:
            sources = [producers.get(name) for name in node.input[:2]]
            if all(s is not None and s.op_type == "DequantizeLinear" for s in sources):
                number = NumberType.INT8
            products[number] += multiply_adds(node, inferred.shapes)
        nodes[number] += 1
    for tensor in proto.graph.initializer:
        if (stored := _TYPES.get(tensor.data_type)) is not None:
            width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            weights[stored] += math.prod(tensor.dims) * width
    return TypeShare(dict(nodes), dict(weights), dict(products), conversions, dict(islands or {}))


def multiply_adds(node: onnx.NodeProto, shapes: Shapes) -> int:
    """Multiply-adds of a node of `PRODUCTS`; a transposed convolution's before it is cropped."""
    try:
        first, second = (shapes[name] for name in node.input[:2])
        result = shapes[node.output[0]]
    except KeyError as missing:
        raise ExportError(f"{node.op_type} {node.name}: no shape is known for {missing}") from None
    if node.op_type == "Conv":
        return math.prod(result) * math.prod(second[1:])  # each result: C / group * k * k
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])  # each input goes to C / group * k * k
    transposed = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(result) * first[-2 if transposed else -1]


def infer(proto: onnx.ModelProto) -> Inferred:
    """Infer shapes at batch 1; a value whose shape depends on the data is left out of them."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    # What the exporter wrote there holds its own symbols for products with the batch.
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in fixed.graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.HasField("dim_param"):
                dimension.dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    elements: dict[str, int] = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        kind = value.type.tensor_type
        elements[value.name] = kind.elem_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in kind.shape.dim)
    return Inferred(shapes, elements)
