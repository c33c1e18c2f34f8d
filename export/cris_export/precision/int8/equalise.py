"""Exact moves of scale between a layer and the next, so that one step size fits all channels.

An activation has one step size for all its channels, a weight has one per output channel. Where one
channel of an activation is ten times larger than the rest, the rest lose three bits. A positive
factor per channel can be moved: the producer's output is divided by it, the consumers' weights are
multiplied. Layer norms and convolutions with a ReLU allow that without any node more (SmoothQuant,
Xiao et al. 2023, and cross-layer equalisation, Nagel et al. 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cris_export.precision.int8.calibration import Observation
from cris_export.precision.int8.sites import Site, find_sites

# Nothing is moved further than this: a channel that was silent on the samples may speak later.
_LIMIT = 16.0
# Operators through which a factor per channel of the last axis passes.
_THROUGH = frozenset({"Transpose"})


@dataclass(frozen=True)
class Move:
    """Where scale can be moved.

    Attributes:
        value: The activation.
        channels: Weights and biases of its producer, to be divided along their first axis.
        sites: All its consumers.
    """

    value: ir.Value
    channels: tuple[ir.Value, ...]
    sites: tuple[Site, ...]

    @property
    def name(self) -> str:
        """The activation's name."""
        return self.value.name or ""


def find_moves(model: ir.Model) -> list[Move]:
    """All activations whose producer and consumers let scale be moved exactly."""
    sites = {id(site.node): site for site in find_sites(model)}
    moves = []
    for node in model.graph:
        value, channels = node.outputs[0], _channels(node)
        if channels is None:
            continue
        if node.op_type == "Conv":
            (relu,) = (user for user, _ in value.uses())
            value = relu.outputs[0]
        consumers = _consumers(value, sites)
        if consumers:
            moves.append(Move(value, channels, tuple(consumers)))
    return moves


def equalise(moves: list[Move], seen: Mapping[str, Observation]) -> None:
    """Move scale, in place: the graph computes the same function.

    Args:
        moves: Where, in a float32 graph.
        seen: Observations of the moves' values.
    """
    for move in moves:
        activation = seen[move.name].channels
        weight = np.max([_largest_per_input(site) for site in move.sites], axis=0)
        factor = _factor(activation, weight)
        for value in move.channels:
            _rescale(value, 1 / factor, 0)
        for site in move.sites:
            _rescale(site.weight, factor, site.inputs)


def _factor(activation: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """What each channel is divided by: halfway to activations, or weights, of equal range."""
    alive = (activation > 0) & (weight > 0)
    ratio = np.ones(len(activation))
    ratio[alive] = np.sqrt(activation[alive].astype(np.float64) / weight[alive])
    ratio[alive] /= np.exp(np.mean(np.log(ratio[alive]))) if alive.any() else 1.0
    return np.clip(ratio, 1 / _LIMIT, _LIMIT)


def _channels(node: ir.Node) -> tuple[ir.Value, ...] | None:
    """What to divide in a producer: scale and shift of a norm, weight and bias of a convolution."""
    if node.op_type == "Conv":
        users = [user for user, _ in node.outputs[0].uses()]
        if [user.op_type for user in users] != ["Relu"]:
            return None
    elif node.op_type != "LayerNormalization":
        return None
    values = [value for value in node.inputs[1:] if value is not None]
    own = [v for v in values if v.is_initializer() and len(tuple(v.uses())) == 1]
    return tuple(own) if len(own) == len(values) and values else None


def _consumers(value: ir.Value, sites: Mapping[int, Site]) -> list[Site] | None:
    """The sites that read a value, or None if anything else does."""
    if value.is_graph_output():
        return None
    found: list[Site] = []
    for user, index in value.uses():
        if user.op_type in _THROUGH and _keeps_last_axis(user):
            more = _consumers(user.outputs[0], sites)
            if more is None:
                return None
            found += more
        elif index == 0 and id(user) in sites and len(tuple(sites[id(user)].weight.uses())) == 1:
            found.append(sites[id(user)])
        else:
            return None
    return found


def _keeps_last_axis(node: ir.Node) -> bool:
    order = node.attributes["perm"].as_ints()
    return order[-1] == len(order) - 1


def _largest_per_input(site: Site) -> NDArray[np.float32]:
    assert site.weight.const_value is not None
    array = np.abs(site.weight.const_value.numpy())
    axes = tuple(axis for axis in range(array.ndim) if axis != site.inputs)
    largest: NDArray[np.float32] = array.max(axis=axes)
    return largest


def _rescale(value: ir.Value, factor: NDArray[np.float64], axis: int) -> None:
    """Scale a weight in place; only one node reads it."""
    assert value.const_value is not None
    array = value.const_value.numpy()
    shape = [1] * array.ndim
    shape[axis] = -1
    scaled = (array * factor.reshape(shape)).astype(np.float32)
    value.const_value = ir.tensor(scaled, name=value.name)
