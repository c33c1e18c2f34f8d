"""What lies between int8 layers in float16: which of it stays float32, on measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from cris_export.precision.islands import Islands, find_islands
from cris_export.precision.rules import ROUNDING_LIMIT, RuleName
from cris_export.proof.float32 import MOST_PAIRS, Reference, measure_stages, spread

_PAIRS = ("QuantizeLinear", "DequantizeLinear")


def find_float_islands(models: Mapping[str, ir.Model], reference: Reference) -> dict[str, Islands]:
    """Decide what of quantised stages computes in float32, and what in float16.

    The rules of float16 graphs, on measures of the float32 stages that were quantised: their nodes
    are those between the int8 layers. And a rule of quantised graphs: where float16 does not
    resolve a step size, the layer that uses it stays as it is.

    Args:
        models: Stage name -> quantised graph.
        reference: Its float32 graphs are those that were quantised.
    """
    feeds = {stage: spread(feeds, MOST_PAIRS) for stage, feeds in reference.feeds.items()}
    found = find_islands(models, measure_stages(dataclasses.replace(reference, feeds=feeds)))
    return {name: with_steps(models[name].graph, found[name]) for name in models}


def with_steps(graph: ir.Graph, islands: Islands) -> Islands:
    """Add the layers whose step sizes float16 does not resolve, with all they read."""
    nodes = dict(islands.nodes)
    for node in graph:
        if node.op_type in _PAIRS and _step_error(node.inputs[1]) > ROUNDING_LIMIT:
            readers = [use.node for use in node.outputs[0].uses()]
            layers = [node, *readers] if node.op_type == "DequantizeLinear" else [node]
            for one in layers:
                nodes.setdefault(one.name or "", RuleName.WEIGHT_RESOLUTION)
    # An int8 layer reads its inputs as they are dequantised: a cast between would end that.
    for node in graph:
        readers = [use.node for output in node.outputs for use in output.uses()]
        if (
            node.op_type == "DequantizeLinear"
            and readers
            and all(one.name in nodes for one in readers)
        ):
            nodes.setdefault(node.name or "", nodes[readers[0].name or ""])
    return dataclasses.replace(islands, nodes=nodes)


def _step_error(step: ir.Value | None) -> float:
    """The largest relative error of step sizes in float16."""
    assert step is not None
    assert step.const_value is not None
    exact = step.const_value.numpy().astype(np.float64)
    rounded = exact.astype(np.float16).astype(np.float64)
    return float(np.max(np.abs(rounded - exact) / np.maximum(exact, np.finfo(np.float32).tiny)))
