"""A float32 graph becomes a typed float16 graph: the precision lies in the graph, nowhere else.

TensorRT 11 has no precision flags any more, and a runtime that meets a typed graph cannot choose
another precision silently. Each exception to float16 is a rule with its reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx
import onnx_ir as ir

from cris_deploy.errors import ExportError

FLOAT16_MAX = float(np.finfo(np.float16).max)  # 65504


class Rule(Protocol):
    """Keeps some nodes in float32."""

    reason: str

    def keeps(self, node: ir.Node) -> bool:
        """True if this node has to compute in float32."""


class NormalisationRule:
    """Layer norms stay in float32."""

    reason = "the sum of squares over 512 to 2048 channels leaves float16's range at a mean of 6"

    def keeps(self, node: ir.Node) -> bool:
        """True for normalisations and the reductions they decompose into."""
        return node.op_type in {"LayerNormalization", "ReduceMean", "ReduceSum", "Pow", "Sqrt"}


class SoftmaxRule:
    """Softmax stays in float32."""

    reason = "a sum of 676 exponentials keeps 3 digits in float16; scores may exceed its range"

    def keeps(self, node: ir.Node) -> bool:
        """True for the softmax of an attention."""
        return node.op_type in {"Softmax", "LogSoftmax"}


RULES: tuple[Rule, ...] = (NormalisationRule(), SoftmaxRule())


@dataclass(frozen=True)
class TypeShare:
    """How much of a graph computes and is stored in which type.

    Attributes:
        nodes: Float type -> nodes whose result has it.
        weight_bytes: Type -> bytes of initializers stored in it.
    """

    nodes: dict[str, int]
    weight_bytes: dict[str, int]


def to_float16(model: ir.Model, *, keep_outputs: frozenset[str] = frozenset()) -> None:
    """Type a float32 graph as float16, in place.

    Weights become float16, and so do all results but those of nodes that a rule keeps. A `Cast`
    stands wherever a tensor crosses, once per tensor. Graph inputs named `image` keep float32 (the
    caller's type), other float inputs become float16; so do outputs, except `keep_outputs`.

    Raises:
        ExportError: a weight does not fit float16's range.
    """
    graph = model.graph
    opset = model.opset_imports[""]
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def cast(value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another type, through one shared Cast."""
        key = (value, dtype)
        if key not in casts:
            node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_{dtype.name}")
            casts[key] = node.outputs[0]
            casts[key].name = f"{value.name}_{dtype.name.lower()}"
            casts[key].shape, casts[key].dtype = value.shape, dtype
            producer = value.producer()
            if producer is None:
                graph.insert_before(graph[0], node)
            else:
                graph.insert_after(producer, node)
        return casts[key]

    halves: dict[ir.Value, ir.Value] = {}

    def fit(value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in this type; weights are converted, not cast."""
        if value.dtype == dtype:
            return value
        if value.is_initializer() and dtype == ir.DataType.FLOAT16:
            if value not in halves:
                halves[value] = _half_initializer(graph, value)
            return halves[value]
        return cast(value, dtype)

    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT and value.name != "image":
            value.dtype = ir.DataType.FLOAT16
    for node in list(graph):
        if node.op_type == "Cast":
            _retype_cast(node)
            continue
        dtype = _compute_type(node)
        shared = _types(node, opset)
        for index, source in enumerate(node.inputs):
            if source is None or source.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
                continue
            follows = shared.inputs[index] == shared.output
            node.replace_input_with(index, fit(source, dtype if follows else ir.DataType.FLOAT))
        for output in node.outputs:
            if output.dtype == ir.DataType.FLOAT and shared.output_is_float:
                output.dtype = dtype
    for index, output in enumerate(graph.outputs):
        if output.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
            continue
        wanted = ir.DataType.FLOAT if output.name in keep_outputs else ir.DataType.FLOAT16
        if output.dtype != wanted:
            name = output.name
            output.name = f"{name}_{output.dtype.name.lower()}"
            final = cast(output, wanted)
            final.name = name
            graph.outputs[index] = final
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        del graph.initializers[name]


def type_share(model: ir.Model) -> TypeShare:
    """Count what the graph's types are, for the manifest: fp16 is shown, not assumed."""
    nodes: dict[str, int] = {}
    for node in model.graph:
        dtype = node.outputs[0].dtype
        if dtype is not None and dtype.is_floating_point():
            nodes[dtype.name.lower()] = nodes.get(dtype.name.lower(), 0) + 1
    stored: dict[str, int] = {}
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            name = value.const_value.dtype.name.lower()
            stored[name] = stored.get(name, 0) + value.const_value.nbytes
    return TypeShare(nodes, stored)


@dataclass(frozen=True)
class _NodeTypes:
    """Which type variables an operator's schema gives to inputs and first output."""

    inputs: tuple[str, ...]
    output: str
    output_is_float: bool


def _types(node: ir.Node, opset: int | None) -> _NodeTypes:
    """Inputs of the same type variable as the output follow its precision.

    So a `Resize` keeps the float32 its scales must have, while its picture becomes float16.
    """
    schema = onnx.defs.get_schema(node.op_type, opset or 20, node.domain)
    names = [parameter.type_str for parameter in schema.inputs]
    while len(names) < len(node.inputs):  # variadic: Concat, Sum
        names.append(names[-1])
    output = schema.outputs[0].type_str
    dtype = node.outputs[0].dtype
    is_float = dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    return _NodeTypes(tuple(names), output, is_float)


def _compute_type(node: ir.Node) -> ir.DataType:
    kept = any(rule.keeps(node) for rule in RULES)
    return ir.DataType.FLOAT if kept else ir.DataType.FLOAT16


def _retype_cast(node: ir.Node) -> None:
    """The exporter's own casts to float32 (of a mask, say) go to float16 instead."""
    if node.outputs[0].dtype == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
        node.outputs[0].dtype = ir.DataType.FLOAT16


def _half_initializer(graph: ir.Graph, value: ir.Value) -> ir.Value:
    assert value.const_value is not None
    array = value.const_value.numpy()
    # An infinity is meant: it masks the words after the present one.
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
    if largest > FLOAT16_MAX:
        raise ExportError(
            f"weight {value.name} reaches {largest:.3g}, beyond float16's {FLOAT16_MAX:.0f}; "
            f"export without --fp16"
        )
    tensor = ir.tensor(array.astype(np.float16), name=f"{value.name}_float16")
    half = ir.Value(
        name=tensor.name,
        shape=value.shape,
        type=ir.TensorType(ir.DataType.FLOAT16),
        const_value=tensor,
    )
    graph.register_initializer(half)
    return half
