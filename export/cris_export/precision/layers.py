"""Two graphs compared layer by layer: where does an error come in that was not there before?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.utils
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cris_deploy.bundle.manifest import GraphName
from cris_export.precision.emulate import emulate_float16
from cris_export.precision.ranges import (
    SOFTMAX_DEPTH,
    TINY,
    Feed,
    constants_of,
    float_values,
    open_session,
)
from cris_export.precision.shares import infer
from cris_export.proof.float32 import Reference, graph_file

# What one run may hand out; the graph is run once for each such part of its values.
CHUNK_BYTES = 128 << 20
# Samples that a worst layer is looked for on.
FEW = 2


@dataclass(frozen=True)
class LayerError:
    """One node of the reference graph, and what the other graph makes of its result.

    Attributes:
        graph: Name of the graph.
        node: Name of the node.
        op_type: Its operator.
        value: Name of its output.
        error: Relative error of the output, Euclidean norms over all samples; infinite if NaN or
            infinity stand where the reference is finite.
        brought_in: The largest relative error among its inputs.
    """

    graph: str
    node: str
    op_type: str
    value: str
    error: float
    brought_in: float

    @property
    def added(self) -> float:
        """What the node itself adds: the part of the error that its inputs do not have."""
        return 0.0 if math.isinf(self.brought_in) else self.error - self.brought_in

    def __str__(self) -> str:
        return (
            f"{self.op_type} {self.node} of {self.graph}: relative error {self.error:.2g}, "
            f"its inputs {self.brought_in:.2g}"
        )


def worst_layer(
    reference: Reference, bundle: Path, stages: Sequence[GraphName] = ()
) -> LayerError | None:
    """Name the layer that adds most to the error of an export.

    Every stage runs on the float32 inputs that the reference has there, so that no stage answers
    for another.

    Args:
        reference: The float32 stages.
        bundle: Folder with the exported stages; they share the reference's value names.
        stages: Which to look at; empty for all.

    Returns:
        None if the graphs share no value.

    Raises:
        ExportError: ONNX Runtime rejects a graph.
    """
    layers = [
        layer
        for stage in (stages or tuple(reference.feeds))
        for layer in compare_layers(
            reference.graph(stage), graph_file(bundle, stage), reference.feeds[stage][:FEW]
        )
    ]
    return max(layers, key=lambda layer: layer.added, default=None)


def compare_layers(reference: Path, other: Path, feeds: Sequence[Feed]) -> list[LayerError]:
    """Compare the values that two graphs share by name, on the CPU, nothing fused.

    Float16 results are rounded one by one, and Q/DQ pairs round, with float32 in between: what
    comes out is the error of the types, not of a device's kernels.

    Args:
        reference: The float32 graph.
        other: The same graph in other types (float16, or with Q/DQ pairs put in).
        feeds: Inputs by name, one mapping per sample; they are cast to what `other` reads.

    Returns:
        One entry per node whose output both have, in the reference's order.

    Raises:
        ExportError: ONNX Runtime rejects a graph.
    """
    truth = onnx.load(reference, load_external_data=False)
    typed = emulate_float16(onnx.load(other, load_external_data=False))
    floats = float_values(truth)
    shared = (floats.keys() & float_values(typed).keys()) - constants_of(truth.graph, floats)
    order = [o for node in truth.graph.node for o in node.output if o in shared]
    axes = _softmax_axes(truth.graph)
    errors: dict[str, float] = {}
    pairs = ((truth, reference.parent), (typed, other.parent))
    graphs = [(_extractor(proto), _input_types(proto), folder) for proto, folder in pairs]
    for names in _chunks(order, infer(truth).shapes):
        sessions = [
            (open_session(graph.extract_model([*types], names), folder), types)
            for graph, types, folder in graphs
        ]
        noise, signal = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for feed in feeds:
            values = [_run(session, types, names, feed) for session, types in sessions]
            for name, exact, mine in zip(names, *values, strict=True):
                squares = _squares(exact, mine, axes.get(name))
                noise[name] += squares[0]
                signal[name] += squares[1]
        errors.update((n, math.sqrt(noise[n] / max(signal[n], TINY))) for n in names)
    return list(_blame(truth.graph, errors))


def _blame(graph: onnx.GraphProto, errors: Mapping[str, float]) -> Iterator[LayerError]:
    # A value that the other graph has no name for brings in what went into it.
    carried = dict(errors)
    for node in graph.node:
        brought_in = max((carried.get(name, 0.0) for name in node.input), default=0.0)
        for output in node.output:
            carried.setdefault(output, brought_in)
            if output in errors:
                yield LayerError(
                    graph.name, node.name, node.op_type, output, errors[output], brought_in
                )


def _squares(
    exact: NDArray[Any], mine: NDArray[Any], softmax_axis: int | None
) -> tuple[float, float]:
    """Sums of squares of the difference and of the reference, over the entries that matter."""
    if exact.shape != mine.shape:  # another value that happens to have the name
        return 0.0, 0.0
    mine = mine.astype(np.float32, copy=False)
    if softmax_axis is not None and exact.size:
        matter = exact > exact.max(axis=softmax_axis, keepdims=True) - SOFTMAX_DEPTH
        exact, mine = exact[matter], mine[matter]
    exact, mine = exact.ravel(), mine.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        signal = float(exact @ exact)
        if not math.isfinite(signal):  # squares beyond float32, or a mask of infinities
            finite = np.isfinite(exact)
            exact, mine = exact[finite].astype(np.float64), mine[finite].astype(np.float64)
            signal = float(exact @ exact)
        difference = mine - exact
        noise = float(difference @ difference)
    return (noise if math.isfinite(noise) else math.inf), signal


def _softmax_axes(graph: onnx.GraphProto) -> dict[str, int]:
    """Values that only softmaxes read -> the axis. What a softmax turns to nothing is no error."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return {
        name: next((a.i for a in nodes[0].attribute if a.name == "axis"), -1)
        for name, nodes in readers.items()
        if all(node.op_type == "Softmax" for node in nodes)
    }


def _chunks(order: list[str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[list[str]]:
    chunk: list[str] = []
    used = 0
    for name in order:
        size = 4 * math.prod(shapes.get(name, ()))
        if chunk and used + size > CHUNK_BYTES:
            yield chunk
            chunk, used = [], 0
        chunk.append(name)
        used += size
    if chunk:
        yield chunk


def _extractor(proto: onnx.ModelProto) -> Any:
    """What cuts graphs that hand out some values, and compute no more than they need."""
    return onnx.utils.Extractor(onnx.shape_inference.infer_shapes(proto))


def _input_types(proto: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    return {
        value.name: helper.tensor_dtype_to_np_dtype(
            value.type.tensor_type.elem_type or TensorProto.FLOAT
        )
        for value in proto.graph.input
    }


def _run(
    session: Any, types: Mapping[str, np.dtype[Any]], names: list[str], feed: Feed
) -> list[NDArray[Any]]:
    values: list[NDArray[Any]] = session.run(
        names, {name: np.asarray(feed[name], types[name]) for name in types}
    )
    return values
