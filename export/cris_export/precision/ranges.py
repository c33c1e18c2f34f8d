"""What the numbers of a float32 graph need: measured on samples, node by node.

The graph is run in ONNX Runtime on the CPU with a shadow beside each node: the same operator on the
same float32 inputs, rounded to float16. So each node's own error is seen, without what the layers
before it would have added. All statistics are computed inside the graph and leave it as scalars, so
that a full-size stage needs little more memory than inference.

A shadow sums in float32, as tensor cores do for convolutions and matrix products in float16. ONNX
Runtime's CPU provider does that for every other float16 operator, too, and would so hide the sums
that a GPU's kernel may keep in float16, those of norms and reductions: they are measured as numbers
of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cris_export.errors import ExportError

Feed = Mapping[str, NDArray[Any]]

# These move or choose numbers: rounding before or after them is the same, so they add no error.
EXACT = frozenset(
    {
        *("Cast", "Clip", "Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity"),
        *("Max", "MaxPool", "Min", "Neg", "Abs", "Pad", "Relu", "Reshape", "Slice", "Split"),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"),
    }
)
# exp() of less is rounded to 0 in float16, whose smallest number is 2^-24: such a score, be it a
# masked word's -30000 or minus infinity, has no say in a softmax, and its error neither.
SOFTMAX_DEPTH = 18.0
TINY = float(np.finfo(np.float32).tiny)  # instead of a division by the zero norm of zeros


@dataclass(frozen=True)
class LayerMeasure:
    """The worst that was measured of one node over all samples.

    Relative errors are quotients of Euclidean norms over the whole tensor.

    Attributes:
        largest: Largest magnitude of the output.
        rounding: Relative error that rounding the output to float16 makes.
        sensitivity: Relative error of the output when only the inputs are rounded.
        inner_sum: Largest sum of magnitudes that a reduction adds up on its way.
        inner_squares: Largest sum of squares that a norm adds up on its way.
        weight_largest: Largest finite magnitude of the node's weights.
        weight_rounding: Relative error that rounding makes in the worst of the node's weights.
    """

    largest: float = 0.0
    rounding: float = 0.0
    sensitivity: float = 0.0
    inner_sum: float = 0.0
    inner_squares: float = 0.0
    weight_largest: float = 0.0
    weight_rounding: float = 0.0


@dataclass(frozen=True)
class GraphMeasures:
    """Measures of a graph: node name -> layer, and name of a float input -> the same of it."""

    layers: Mapping[str, LayerMeasure]
    inputs: Mapping[str, LayerMeasure]


def measure(model: Path, feeds: Sequence[Feed]) -> GraphMeasures:
    """Measure a float32 graph on samples.

    Args:
        model: An ONNX file whose external weights, if any, lie beside it.
        feeds: One mapping of input names to arrays per sample, not empty.

    Raises:
        ExportError: the graph cannot be run.
    """
    proto = onnx.load(model, load_external_data=False)
    weights = _measure_weights(proto, model.parent)
    probe = _Probe(proto)
    probe.build()
    session = open_session(proto, model.parent)
    runs = [session.run(probe.outputs, dict(feed)) for feed in feeds]
    columns = zip(probe.outputs, zip(*runs, strict=True), strict=True)
    statistics = {name: np.array(column, np.float64) for name, column in columns}
    layers = {name: watch.read(statistics) for name, watch in probe.nodes.items()}
    for name, (largest, rounding) in weights.items():
        layers[name] = dataclasses.replace(
            layers.get(name, LayerMeasure()), weight_largest=largest, weight_rounding=rounding
        )
    inputs = {name: watch.read(statistics) for name, watch in probe.inputs.items()}
    return GraphMeasures(layers, inputs)


def open_session(proto: onnx.ModelProto, folder: Path, *, plain: bool = True) -> Any:
    """A CPU session for a few runs.

    Args:
        proto: A graph whose external weights lie in `folder`.
        folder: Where they are.
        plain: Nothing fused, nothing folded, every value computed as it is written.

    Raises:
        ExportError: ONNX Runtime rejects the graph, or is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(
            f"measuring precision needs ONNX Runtime ({error}): pip install 'cris-deploy[cpu]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Copying hundreds of megabytes of weights into another layout does not pay for a few runs.
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder.resolve())
    )
    try:
        return onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its exceptions share no base class
        raise ExportError(f"ONNX Runtime cannot load {proto.graph.name}: {error}") from error


def float_values(proto: onnx.ModelProto) -> dict[str, int]:
    """Name -> element type of all values of type float32 or float16 but initializers."""
    inferred = onnx.shape_inference.infer_shapes(proto)
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
        if value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    }


def constants_of(graph: onnx.GraphProto, floats: Iterable[str]) -> set[str]:
    """Float values that are only selected from initializers: masks, embeddings, slices of codes.

    Their numbers do not depend on the samples, so there is nothing to measure.
    """
    weights = {tensor.name for tensor in graph.initializer}
    floats = set(floats)
    constants: set[str] = set()
    for node in graph.node:
        sources = [s for s in node.input if s in floats and s not in weights]
        if node.op_type in EXACT and all(source in constants for source in sources):
            constants.update(output for output in node.output if output in floats)
    return constants


def _measure_weights(proto: onnx.ModelProto, folder: Path) -> dict[str, tuple[float, float]]:
    """Node name -> largest magnitude, and worst rounding error, of its float32 initializers."""
    known: dict[str, tuple[float, float]] = {}
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor, str(folder)).ravel()
            # An infinity is meant: it masks the words after the present one.
            array = array[np.isfinite(array)]
            with np.errstate(over="ignore", invalid="ignore"):
                noise = array - array.astype(np.float16)
                error = np.sqrt(np.dot(noise, noise) / max(np.dot(array, array), TINY))
            known[tensor.name] = (float(np.abs(array).max(initial=0.0)), float(error))
    measured = {}
    for node in proto.graph.node:
        own = [known[name] for name in node.input if name in known]
        if own:
            measured[node.name] = max(n for n, _ in own), max(n for _, n in own)
    return measured


@dataclass
class _Watch:
    """Names of the scalars that tell about one node's outputs, or about one graph input."""

    largest: list[str] = field(default_factory=list)
    signal: list[str] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)
    error: list[str] = field(default_factory=list)
    inner_sum: list[str] = field(default_factory=list)
    inner_squares: list[str] = field(default_factory=list)

    def read(self, statistics: Mapping[str, NDArray[np.float64]]) -> LayerMeasure:
        """The worst over outputs and samples; `statistics` has each scalar's values."""

        def worst(scalars: list[str]) -> float:
            return max((float(statistics[scalar].max()) for scalar in scalars), default=0.0)

        def relative(scalars: list[str]) -> float:
            quotients = (
                statistics[scalar] / np.maximum(statistics[signal], TINY)
                for scalar, signal in zip(scalars, self.signal, strict=bool(scalars))
            )
            return max((float(np.sqrt(quotient).max()) for quotient in quotients), default=0.0)

        return LayerMeasure(
            largest=worst(self.largest),
            rounding=relative(self.noise),
            sensitivity=relative(self.error),
            inner_sum=worst(self.inner_sum),
            inner_squares=worst(self.inner_squares),
        )


class _Probe:
    """Adds shadows and statistics to a graph, in place."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.outputs: list[str] = []
        self.nodes: dict[str, _Watch] = {}
        self.inputs: dict[str, _Watch] = {}
        self._graph = proto.graph
        self._floats = float_values(proto)
        self._added: list[onnx.NodeProto] = []
        self._rounded: dict[str, str] = {}
        self._count = 0
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for source in node.input:
                self._readers.setdefault(source, []).append(node)

    def build(self) -> None:
        """Replace the graph's outputs by scalars, named in `outputs`."""
        graph = self._graph
        constants = constants_of(graph, self._floats)
        graph.initializer.extend(
            [
                helper.make_tensor("probe/zero", TensorProto.FLOAT, [], [0.0]),
                helper.make_tensor("probe/depth", TensorProto.FLOAT, [], [SOFTMAX_DEPTH]),
            ]
        )
        for value in graph.input:
            if value.name in self._floats:
                self.inputs[value.name] = watch = _Watch()
                self._watch_value(watch, value.name)
        for node in graph.node:
            outputs = [o for o in node.output if o in self._floats and o not in constants]
            if not outputs:
                continue
            self.nodes[node.name] = watch = _Watch()
            for output in outputs:
                self._watch_value(watch, output)
            self._watch_sums(watch, node)
            if node.op_type not in EXACT:
                self._shadow(watch, node, outputs)
        graph.node.extend(self._added)
        del graph.output[:]
        graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs
        )

    def _watch_value(self, watch: _Watch, value: str) -> None:
        seen = self._heard(value, value)
        noise = self._op("Sub", seen, self._heard(self._round(value), value))
        watch.largest.append(self._scalar("ReduceMax", self._op("Abs", seen)))
        watch.signal.append(self._scalar("ReduceSumSquare", seen))
        watch.noise.append(self._scalar("ReduceSumSquare", noise))

    def _shadow(self, watch: _Watch, node: onnx.NodeProto, outputs: list[str]) -> None:
        """The node once more, on rounded inputs. Weights keep float32: they are judged alone."""
        shadow = onnx.NodeProto()
        shadow.CopyFrom(node)
        shadow.name = self._name()
        shadow.input[:] = [self._round(s) if s in self._floats else s for s in node.input]
        shadow.output[:] = [self._name() if output else "" for output in node.output]
        self._added.append(shadow)
        for mine, output in zip(shadow.output, node.output, strict=True):
            if output in outputs:
                difference = self._op("Sub", self._heard(mine, output), self._heard(output, output))
                watch.error.append(self._scalar("ReduceSumSquare", difference))

    def _watch_sums(self, watch: _Watch, node: onnx.NodeProto) -> None:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "LayerNormalization":
            # Of the plain values: some kernels form the variance as E[x^2] - E[x]^2.
            axis = int(attributes.get("axis", -1))
            axes = self._integers(list(range(axis, 0)) if axis < 0 else [axis])
            summed = self._op("ReduceSumSquare", node.input[0], axes)
            watch.inner_squares.append(self._scalar("ReduceMax", summed))
        elif node.op_type in ("ReduceSumSquare", "ReduceL2"):
            summed = self._op("ReduceSumSquare", *node.input)
            watch.inner_squares.append(self._scalar("ReduceMax", summed))
        elif node.op_type in ("ReduceMean", "ReduceSum", "ReduceL1", "GlobalAveragePool"):
            pooled = node.op_type == "GlobalAveragePool"
            axes_input = [self._integers([2, 3])] if pooled else node.input[1:]
            summed = self._op("ReduceSum", self._op("Abs", node.input[0]), *axes_input)
            watch.inner_sum.append(self._scalar("ReduceMax", summed))

    def _heard(self, value: str, reference: str) -> str:
        """The value, without the entries that its only readers, softmaxes, turn to nothing."""
        readers = self._readers.get(reference, [])
        if not readers or any(reader.op_type != "Softmax" for reader in readers):
            return value
        (axis, *_) = [*(a.i for a in readers[0].attribute if a.name == "axis"), -1]
        peak = self._op("ReduceMax", reference, self._integers([axis]))
        heard = self._op("Greater", reference, self._op("Sub", peak, "probe/depth"))
        return self._op("Where", heard, value, "probe/zero")

    def _round(self, value: str) -> str:
        """The value as float16 holds it, in float32."""
        if value not in self._rounded:
            half = self._op("Cast", value, to=TensorProto.FLOAT16)
            self._rounded[value] = self._op("Cast", half, to=TensorProto.FLOAT)
        return self._rounded[value]

    def _scalar(self, reduction: str, value: str) -> str:
        name = self._op(reduction, value, keepdims=0)
        self.outputs.append(name)
        return name

    def _integers(self, values: list[int]) -> str:
        name = self._name()
        self._graph.initializer.append(
            helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        )
        return name

    def _op(self, op_type: str, *inputs: str, **attributes: int) -> str:
        name = self._name()
        self._added.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def _name(self) -> str:
        self._count += 1
        return f"probe/{self._count}"
