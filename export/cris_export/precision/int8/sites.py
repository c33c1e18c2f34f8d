"""Which layers of a graph compute in int8, and where their inputs are rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from cris_deploy.bundle.manifest import GraphName

# Axis of the output channels in a layer's weights, and of its input channels.
_AXES = {"Conv": (0, 1), "MatMul": (1, 0), "Gemm": (1, 0)}
# A layer of fewer channels is not worth two conversions, and runtimes have no good kernel for it:
# the first one with its three colours, and the head's last sum over nine maps, which OpenVINO gets
# wrong in int8.
LEAST_CHANNELS = 16


@dataclass(frozen=True)
class Site:
    """A layer that can compute in int8.

    Attributes:
        node: A Conv, MatMul or Gemm whose second input is a weight.
        source: Its first input, which is rounded where the layer reads it. Rounding earlier, before
            a Pad or Slice, would serve several layers at once; OpenVINO 2026.4 then computes in
            a wrong scale.
        weight: Its weight.
        outputs: Axis of the output channels in the weight.
        inputs: Axis of the input channels in the weight.
        whole: False if only the weight is stored in int8 and the layer computes in float32: what
            reads a sentence or its words from outside has little to compute and steers all that
            follows.
    """

    node: ir.Node
    source: ir.Value
    weight: ir.Value
    outputs: int
    inputs: int
    whole: bool

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name or ""


def find_sites(model: ir.Model) -> list[Site]:
    """All layers that can compute in int8, in the graph's order.

    Left out are layers of few channels, grouped convolutions, and the products of two
    activations: attention gains nothing in time, and the dynamic kernel, whose errors nothing
    averages out, makes the logits.
    """
    sites = []
    for node in model.graph:
        if node.op_type not in _AXES or _integer(node, "group", 1) != 1:
            continue
        source, weight = node.inputs[0], node.inputs[1]
        if source is None or weight is None or not _is_weight(weight):
            continue
        assert weight.shape is not None
        outputs, inputs = _AXES[node.op_type]
        if node.op_type == "Gemm" and _integer(node, "transB", 0):
            outputs, inputs = inputs, outputs
        sizes = weight.shape.numpy()
        if min(sizes[outputs], sizes[inputs]) >= LEAST_CHANNELS:
            whole = source.producer() is not None or is_picture(source)
            sites.append(Site(node, source, weight, outputs, inputs, whole))
    return sites


def find_stage_sites(stage: GraphName, model: ir.Model) -> list[Site]:
    """A stage's layers. The text encoder's keep float32 inputs.

    It is 3% of the time, and its errors reach every pixel: with random weights, rounded inputs
    there lost as much as those of the other two stages together.
    """
    return [
        dataclasses.replace(site, whole=site.whole and stage is not GraphName.TEXT_ENCODER)
        for site in find_sites(model)
    ]


def residual_values(model: ir.Model, sites: Sequence[Site]) -> list[ir.Value]:
    """Pictures to be rounded beside the layers' inputs, so that only int8 is moved.

    They are the convolutions that a residual sum adds, and what a pooling averages. Matrices are
    left alone: the residual stream of a transformer has to carry small differences.
    """
    rounded = {site.source for site in sites if site.whole}
    layers = {site.node.outputs[0] for site in sites if site.node.op_type == "Conv"}
    found: list[ir.Value] = []
    for node in model.graph:
        if node.op_type == "AveragePool":
            values = [node.inputs[0]]
        elif node.op_type == "Add" and _feeds_rounding(node, rounded):
            values = [value for value in node.inputs if value in layers]
        else:
            continue
        found += [v for v in values if v is not None and v not in rounded and v not in found]
    return found


def fold_weight_slices(model: ir.Model) -> None:
    """Replace slices of weights by weights: quantised weights have to be constants.

    The projector's edges use a part of the weights that its middle uses whole. In float32 the part
    is cut out when the graph is loaded, and stored once.
    """
    graph = model.graph
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type != "Slice" or source is None or not _is_weight(source):
            continue
        starts, ends, axes, *rest = (_constant(value) for value in node.inputs[1:])
        steps = rest[0] if rest else [1] * len(axes)
        assert source.const_value is not None
        cut = [slice(None)] * source.const_value.numpy().ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            cut[axis] = slice(start, end, step)
        part = ir.tensor(np.ascontiguousarray(source.const_value.numpy()[tuple(cut)]))
        whole = new_weight(model, part, f"{source.name}_{node.name}")
        for user, index in tuple(node.outputs[0].uses()):
            user.replace_input_with(index, whole)
        graph.remove(node, safe=True)
    drop_unused_weights(model)


def new_weight(model: ir.Model, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    """Register a weight."""
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    model.graph.register_initializer(value)
    return value


def drop_unused_weights(model: ir.Model) -> None:
    """Delete the weights that no node uses."""
    initializers = model.graph.initializers
    for name in [n for n, value in initializers.items() if not value.uses()]:
        del initializers[name]


def users(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that read a value."""
    for node, _ in value.uses():
        yield node


def _feeds_rounding(node: ir.Node, rounded: set[ir.Value]) -> bool:
    """True for a sum of two pictures whose ReLU is a layer's input."""
    relus = [user.outputs[0] for user in users(node.outputs[0]) if user.op_type == "Relu"]
    variable = [value for value in node.inputs if value is not None and not value.is_initializer()]
    return len(variable) == 2 and any(relu in rounded for relu in relus)


def _is_weight(value: ir.Value) -> bool:
    return (
        value.is_initializer()
        and value.dtype == ir.DataType.FLOAT
        and value.shape is not None
        and len(value.shape) >= 2
    )


def is_picture(value: ir.Value) -> bool:
    """True for (n, C, h, w), False for rows of channels."""
    return value.shape is not None and len(value.shape) == 4


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _constant(value: ir.Value | None) -> list[int]:
    assert value is not None
    assert value.const_value is not None
    return [int(number) for number in value.const_value.numpy().ravel()]
