"""QuantizeLinear and DequantizeLinear are put into a graph: the precision lies in it, nowhere else.

One graph serves ONNX Runtime, OpenVINO and TensorRT: signed, symmetric, a step size per tensor for
activations and per output channel for weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cris_export.precision.int8.calibration import LEVELS, Observation
from cris_export.precision.int8.rounding import Rounded, round_weight
from cris_export.precision.int8.sites import Site, drop_unused_weights, is_picture, new_weight

# Room for what the samples did not show. A matrix's largest values are few and steer attentions:
# clipping those of an unseen expression costs more than a coarser step. In a picture they are many.
_MATRIX_MARGIN = 1.25
# Numbers in a constant from which its size matters.
_MAP = 1 << 16


def quantise(
    model: ir.Model,
    sites: Sequence[Site],
    residuals: Sequence[ir.Value],
    seen: Mapping[str, Observation],
    rounded: Mapping[str, Rounded],
) -> None:
    """Let layers compute in int8, in place.

    Args:
        model: A float32 graph.
        sites: The layers.
        residuals: More values to be rounded.
        seen: Observations of each whole site's source and of each residual, by name.
        rounded: Every site's weight, by the weight's name.
    """
    weights: dict[ir.Value, ir.Value] = {}
    for site in sites:
        if site.weight not in weights:
            weights[site.weight] = _store_weight(model, site, rounded[site.weight.name or ""])
    layers: dict[ir.Value, list[Site]] = {}
    for site in sites:
        if site.whole:
            layers.setdefault(site.source, []).append(site)
    for value in [*layers, *residuals]:
        observation = seen[value.name or ""]
        if value in layers and _can_be_centred(value, layers[value]):
            middle = LEVELS * observation.step(2 * LEVELS)
            _round_centred(model, value, layers[value], middle, rounded)
        else:
            readers = [(user, index) for user, index in value.uses()]
            step = observation.step(margin=1.0 if is_picture(value) else _MATRIX_MARGIN)
            _round_activation(model, value, step, readers)
    for site in sites:
        if site.whole and site.node.op_type == "Conv":
            means = seen[site.source.name or ""].means
            _correct_mean(model, site, means, rounded[site.weight.name or ""])
    for site in sites:
        site.node.replace_input_with(1, weights[site.weight])
    drop_unused_weights(model)


def quantise_embedding(model: ir.Model) -> None:
    """Store tables that are only looked up in int8, a step size per row."""
    for node in list(model.graph):
        table = node.inputs[0] if node.op_type == "Gather" else None
        if (
            table is None
            or not table.is_initializer()
            or table.dtype != ir.DataType.FLOAT
            or table.shape is None
            or len(table.shape) != 2
            or len(tuple(table.uses())) != 1
            or node.attributes.get_int("axis", 0) != 0
        ):
            continue
        assert table.const_value is not None
        rows_rounded = round_weight(table.const_value.numpy(), 0)
        small = new_weight(model, ir.tensor(rows_rounded.integers), f"{table.name}_int8")
        scale = new_weight(model, ir.tensor(rows_rounded.steps), f"{table.name}_step")
        last = new_weight(model, ir.tensor(np.array([-1])), f"{table.name}_axis")
        result, indices = node.outputs[0], node.inputs[1]
        rows = ir.node("Gather", [small, indices], name=f"{node.name}_int8")
        floats = ir.node("Cast", rows.outputs, {"to": int(ir.DataType.FLOAT)})
        sizes = ir.node("Gather", [scale, indices], name=f"{node.name}_step")
        column = ir.node("Unsqueeze", [sizes.outputs[0], last], name=f"{node.name}_column")
        product = ir.node("Mul", [floats.outputs[0], column.outputs[0]], name=node.name)
        rows.outputs[0].dtype = ir.DataType.INT8
        for made in (floats, sizes, column, product):
            made.outputs[0].dtype = ir.DataType.FLOAT
        steps_of_lookup = [rows, floats, sizes, column, product]
        for index, made in enumerate(steps_of_lookup):
            made.outputs[0].name = f"{result.name}_{index}"
        model.graph.insert_before(node, steps_of_lookup)
        for user, index in tuple(result.uses()):
            user.replace_input_with(index, product.outputs[0])
        model.graph.remove(node, safe=True)
    drop_unused_weights(model)


def halve_maps(model: ir.Model) -> None:
    """Store constant maps that are added, one number per position and channel, in float16.

    They are the folded positions of the attentions and of the coordinate convolution. A runtime
    converts them once, when it loads the graph.
    """
    for node in [node for node in model.graph if node.op_type == "Add"]:
        for index, value in enumerate(node.inputs):
            if value is None or not value.is_initializer() or value.const_value is None:
                continue
            if value.dtype != ir.DataType.FLOAT or value.const_value.size < _MAP:
                continue
            half = ir.tensor(value.const_value.numpy().astype(np.float16))
            stored = new_weight(model, half, f"{value.name}_half")
            cast = ir.node(
                "Cast", [stored], {"to": int(ir.DataType.FLOAT)}, name=f"{stored.name}_up"
            )
            _describe(cast.outputs[0], f"{stored.name}_float", ir.DataType.FLOAT, value.shape)
            model.graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    drop_unused_weights(model)


def _can_be_centred(value: ir.Value, sites: Sequence[Site]) -> bool:
    """True for the result of a ReLU that only convolutions read, directly or cut in parts."""
    if not all(site.node.op_type == "Conv" and _constant_is_small(site) for site in sites):
        return False
    if any(user.op_type not in {"Conv", "Pad", "Slice"} for user, _ in value.uses()):
        return False
    source: ir.Value | None = value
    while source is not None and (node := source.producer()) is not None:
        if node.op_type == "Relu":
            return True
        if node.op_type not in {"Pad", "Slice"}:
            return False
        source = node.inputs[0]
    return False


def _constant_is_small(site: Site) -> bool:
    """True if what `_add_constant` stores is small beside the layer's weight."""
    result, weight = site.node.outputs[0].shape, site.weight.shape
    assert result is not None
    assert weight is not None
    stored = int(np.prod(_sizes(result)[1:])) if any(_pads(site.node)) else 0
    return stored * 4 <= int(np.prod(weight.numpy()))


def _round_centred(
    model: ir.Model,
    value: ir.Value,
    sites: Sequence[Site],
    middle: float,
    rounded: Mapping[str, Rounded],
) -> None:
    """Round x - m instead of x, for x from 0 to 2 m, so that none of the 255 integers lies idle.

    A convolution is linear: conv(x) = conv(x - m) + m conv(1). The second summand is constant, with
    zeros beyond the edges as the convolution pads them. It is computed from the rounded weights, so
    that their error does not meet the large number m.
    """
    shift = new_weight(model, ir.tensor(np.float32(middle)), f"{value.name}_middle")
    centre = ir.node("Sub", [value, shift], name=f"{value.name}_centre")
    centred = centre.outputs[0]
    _describe(centred, f"{value.name}_centred", ir.DataType.FLOAT, value.shape)
    _insert_after(model, value, centre)
    readers = [(site.node, 0) for site in sites]
    _round_activation(model, centred, middle / LEVELS, readers)
    for site in sites:
        _add_constant(model, site, middle, rounded[site.weight.name or ""])


def _correct_mean(
    model: ir.Model, site: Site, means: NDArray[np.float64], rounded: Rounded
) -> None:
    """Take back what the rounding of the weights adds to the mean of each output channel.

    After a ReLU most of a signal's power is its mean, and the weights' error times a mean is an
    offset that nothing averages out.
    """
    assert site.weight.const_value is not None
    weight = site.weight.const_value.numpy()
    error = (weight - rounded.values).sum(axis=(2, 3))
    _add_bias(model, site.node, error @ means)


def _add_constant(model: ir.Model, site: Site, middle: float, rounded: Rounded) -> None:
    """Add what the subtracted middle would have given."""
    node = site.node
    weight = rounded.values
    pads = _pads(node)
    if not any(pads):
        _add_bias(model, node, middle * weight.sum(axis=(1, 2, 3)))
        return
    picture = middle * _edges(weight.sum(axis=1), site, pads)
    added = new_weight(model, ir.tensor(picture.astype(np.float32)), f"{node.name}_constant")
    result = node.outputs[0]
    readers = tuple(result.uses())
    total = ir.node("Add", [result, added], name=f"{node.name}_plus_constant")
    _describe(total.outputs[0], f"{result.name}_whole", ir.DataType.FLOAT, result.shape)
    _insert_after(model, result, total)
    for user, index in readers:
        user.replace_input_with(index, total.outputs[0])


def _add_bias(model: ir.Model, node: ir.Node, bias: NDArray[np.float64]) -> None:
    """Add to a convolution's bias; it may have none."""
    old = node.inputs[2] if len(node.inputs) > 2 else None
    if old is not None:
        assert old.const_value is not None
        bias = bias + old.const_value.numpy()
    else:
        node.resize_inputs(3)
    tensor = ir.tensor(bias.astype(np.float32))
    name = f"{node.name}_bias"
    if old is not None and old.name == name:
        old.const_value = tensor
    else:
        node.replace_input_with(2, new_weight(model, tensor, name))


def _sizes(shape: ir.Shape) -> list[int]:
    """Sizes of a tensor, a free dimension as 1."""
    return [size if isinstance(size, int) else 1 for size in shape]


def _pads(node: ir.Node) -> Sequence[int]:
    return node.attributes["pads"].as_ints() if "pads" in node.attributes else (0, 0, 0, 0)


def _edges(taps: NDArray[np.float64], site: Site, pads: Sequence[int]) -> NDArray[np.float64]:
    """A convolution of ones with zeros around them: taps (C, kh, kw) -> (1, C, h, w)."""
    assert site.source.shape is not None
    height, width = _sizes(site.source.shape)[2:]
    strides = (
        site.node.attributes["strides"].as_ints() if "strides" in site.node.attributes else (1, 1)
    )
    ones = np.pad(np.ones((height, width)), ((pads[0], pads[2]), (pads[1], pads[3])))
    windows = np.lib.stride_tricks.sliding_window_view(ones, taps.shape[1:])
    windows = windows[:: strides[0], :: strides[1]]
    edges: NDArray[np.float64] = np.einsum("hwij,cij->chw", windows, taps)[None]
    return edges


def _round_activation(
    model: ir.Model, value: ir.Value, step: float, readers: Sequence[tuple[ir.Node, int]]
) -> None:
    """A pair behind a value, for those who read it."""
    scale = new_weight(model, ir.tensor(np.float32(step)), f"{value.name}_step")
    zero = new_weight(model, ir.tensor(np.int8(0)), f"{value.name}_zero")
    down = ir.node("QuantizeLinear", [value, scale, zero], name=f"{value.name}_quantize")
    up = ir.node(
        "DequantizeLinear", [down.outputs[0], scale, zero], name=f"{value.name}_dequantize"
    )
    _describe(down.outputs[0], f"{value.name}_int8", ir.DataType.INT8, value.shape)
    _describe(up.outputs[0], f"{value.name}_rounded", ir.DataType.FLOAT, value.shape)
    _insert_after(model, value, down, up)
    for user, index in readers:
        user.replace_input_with(index, up.outputs[0])


def _insert_after(model: ir.Model, value: ir.Value, *nodes: ir.Node) -> None:
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(model.graph[0], nodes)
    else:
        model.graph.insert_after(producer, nodes)


def _store_weight(model: ir.Model, site: Site, rounded: Rounded) -> ir.Value:
    name, steps = site.weight.name, rounded.steps
    up = ir.node(
        "DequantizeLinear",
        [
            new_weight(model, ir.tensor(rounded.integers), f"{name}_int8"),
            new_weight(model, ir.tensor(steps), f"{name}_step"),
            new_weight(model, ir.tensor(np.zeros(len(steps), np.int8)), f"{name}_zero"),
        ],
        {"axis": site.outputs},
        name=f"{name}_dequantize",
    )
    _describe(up.outputs[0], f"{name}_rounded", ir.DataType.FLOAT, site.weight.shape)
    model.graph.insert_before(site.node, up)
    return up.outputs[0]


def _describe(value: ir.Value, name: str, dtype: ir.DataType, shape: ir.Shape | None) -> None:
    value.name, value.dtype, value.shape = name, dtype, shape
