"""Which nodes of a float16 graph compute in float32, and why: decided on measures, not on names.

Each rule is a small class: a number, its limit, and how far the remedy has to reach. What a graph
needs is found from the samples (`measure.py`); a layer norm or softmax is nothing special here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Protocol

import numpy as np
import onnx_ir as ir

from cris_export.precision.ranges import EXACT, GraphMeasures, LayerMeasure

FLOAT16_MAX = float(np.finfo(np.float16).max)  # 65504
# Other images and expressions may drive a value to a few times what the samples show.
HEADROOM = 4.0
# One rounding makes a relative error of 2.1e-4 over a tensor. Some fifty layers of that, which add
# up as squares do, make 1.5e-3: no single node may cost more than all of them.
ROUNDING_LIMIT = 1.5e-3


# The operators with the multiply-adds; all others are cheap, whatever type they compute in.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


class RuleName(StrEnum):
    """Why a node computes in float32."""

    RANGE = "range"
    RESOLUTION = "resolution"
    WEIGHT_RANGE = "weight range"
    WEIGHT_RESOLUTION = "weight resolution"
    INNER_SQUARES = "inner squares"
    INNER_SUM = "inner sum"
    SENSITIVITY = "sensitivity"
    FACE = "face"  # reads or writes what another stage keeps in float32
    FEWER_CASTS = "fewer casts"


class Reach(Enum):
    """What has to be float32 to undo a node's trouble."""

    NODE = "the arithmetic inside the node"
    OUTPUT = "the node's result: the node and all that read it"
    INPUTS = "what the node reads: the node and all that feed it"


class Rule(Protocol):
    """Keeps nodes in float32 whose number is above the limit."""

    name: RuleName
    reason: str
    limit: float
    reach: Reach

    def number(self, layer: LayerMeasure) -> float:
        """What is compared with the limit."""


class RangeRule:
    """The result leaves float16's range."""

    name = RuleName.RANGE
    reason = "the largest value over the samples, times 4 for others, leaves float16's 65504"
    limit = FLOAT16_MAX / HEADROOM
    reach = Reach.OUTPUT

    def number(self, layer: LayerMeasure) -> float:
        """Largest magnitude."""
        return layer.largest


class ResolutionRule:
    """The result is so small that float16 does not resolve it."""

    name = RuleName.RESOLUTION
    reason = "most of the result is below 6e-5, where float16 has fewer than 11 bits"
    limit = ROUNDING_LIMIT
    reach = Reach.OUTPUT

    def number(self, layer: LayerMeasure) -> float:
        """Relative error of rounding the result."""
        return layer.rounding


class WeightRangeRule:
    """A weight leaves float16's range. Weights do not change with the sample: no headroom."""

    name = RuleName.WEIGHT_RANGE
    reason = "a weight leaves float16's 65504"
    limit = FLOAT16_MAX
    reach = Reach.NODE

    def number(self, layer: LayerMeasure) -> float:
        """Largest finite magnitude; infinities are masks, and float16 has them."""
        return layer.weight_largest


class WeightResolutionRule:
    """Weights are so small that float16 does not resolve them."""

    name = RuleName.WEIGHT_RESOLUTION
    reason = "most of a weight is below 6e-5, where float16 has fewer than 11 bits"
    limit = ROUNDING_LIMIT
    reach = Reach.NODE

    def number(self, layer: LayerMeasure) -> float:
        """Relative error of rounding the weights."""
        return layer.weight_rounding


class InnerSquaresRule:
    """A norm's sum of squares leaves float16's range, though its input and result fit well.

    ONNX's layer norm asks for float32 inside (`stash_type`), but kernels and fusions that sum in
    float16 exist; in the island there is no doubt. The headroom counts twice: they are squares.
    """

    name = RuleName.INNER_SQUARES
    reason = "the norm's sum of squares over the samples, times 16 for others, leaves 65504"
    limit = FLOAT16_MAX / HEADROOM**2
    reach = Reach.NODE

    def number(self, layer: LayerMeasure) -> float:
        """Largest sum of squares."""
        return layer.inner_squares


class InnerSumRule:
    """A mean's sum leaves float16's range before it is divided."""

    name = RuleName.INNER_SUM
    reason = "the reduction's sum over the samples, times 4 for others, leaves float16's 65504"
    limit = FLOAT16_MAX / HEADROOM
    reach = Reach.NODE

    def number(self, layer: LayerMeasure) -> float:
        """Largest sum of magnitudes."""
        return layer.inner_sum


class SensitivityRule:
    """The node blows up the rounding of its inputs: a softmax of large scores, a cancellation.

    A softmax's relative error is the absolute error of its scores, which grows with the scores:
    those of 80 are rounded by up to 0.03. It helps nothing to compute such a node in float32 from
    rounded inputs, so that the products that give the scores come along.
    """

    name = RuleName.SENSITIVITY
    reason = "rounded inputs alone cost more than all other layers together"
    limit = ROUNDING_LIMIT
    reach = Reach.INPUTS

    def number(self, layer: LayerMeasure) -> float:
        """Relative error of the result of rounded inputs."""
        return layer.sensitivity


RULES: tuple[Rule, ...] = (
    RangeRule(),
    ResolutionRule(),
    WeightRangeRule(),
    WeightResolutionRule(),
    InnerSquaresRule(),
    InnerSumRule(),
    SensitivityRule(),
)


@dataclass(frozen=True)
class Finding:
    """A rule that speaks for float32.

    Attributes:
        node: Name of the node, or of the graph input, that was measured.
        op_type: Its operator; `Input` for a graph input.
        rule: Which rule.
        number: What was measured.
        limit: What float16 allows.
    """

    node: str
    op_type: str
    rule: RuleName
    number: float
    limit: float


@dataclass(frozen=True)
class Islands:
    """Where a float16 graph stays float32.

    Attributes:
        nodes: Name of each node that computes in float32 -> the rule that wants it.
        face: Graph inputs and outputs that stay float32.
        findings: What was measured.
    """

    nodes: Mapping[str, RuleName]
    face: frozenset[str]
    findings: tuple[Finding, ...]


NO_ISLANDS = Islands({}, frozenset(), ())


def find_islands(
    models: Mapping[str, ir.Model], measures: Mapping[str, GraphMeasures]
) -> dict[str, Islands]:
    """Decide for all stages together: what one hands to another has one type.

    Args:
        models: Stage name -> float32 graph.
        measures: Stage name -> what was measured of it.

    Returns:
        Stage name -> its islands.
    """
    drafts = {name: _Draft(models[name].graph) for name in models}
    for name, draft in drafts.items():
        draft.apply(measures[name])
    handed: set[str] = set()
    while new := set[str]().union(*(draft.face for draft in drafts.values())) - handed:
        for draft in drafts.values():
            draft.keep_face(new)
        handed |= new
    for draft in drafts.values():
        draft.save_casts()
    return {
        name: Islands(draft.nodes, frozenset(draft.face), tuple(draft.findings))
        for name, draft in drafts.items()
    }


class _Draft:
    """Islands of one graph while they grow."""

    def __init__(self, graph: ir.Graph) -> None:
        self.nodes: dict[str, RuleName] = {}
        self.face: set[str] = set()
        self.findings: list[Finding] = []
        self._graph = graph
        self._constants: set[ir.Value] = set()
        for node in graph:
            if node.op_type in EXACT and not self._computed(node):
                self._constants.update(node.outputs)

    def apply(self, measures: GraphMeasures) -> None:
        """Ask every rule about every input and node."""
        for value in self._graph.inputs:
            name = value.name or ""
            for rule, number in _broken(measures.inputs.get(name)):
                self.findings.append(Finding(name, "Input", rule.name, number, rule.limit))
                self._keep_value(value, rule.name)
        for node in self._graph:
            name = node.name or ""
            for rule, number in _broken(measures.layers.get(name)):
                self.findings.append(Finding(name, node.op_type, rule.name, number, rule.limit))
                self._keep(node, rule.name)
                if rule.reach is Reach.OUTPUT:
                    for output in node.outputs:
                        self._keep_value(output, rule.name)
                elif rule.reach is Reach.INPUTS:
                    self._keep_sources(node, rule.name)

    def keep_face(self, names: set[str]) -> None:
        """Keep those of these values that are inputs or outputs of this graph."""
        for value in (*self._graph.inputs, *self._graph.outputs):
            if value.name in names:
                self._keep_value(value, RuleName.FACE)

    def save_casts(self) -> None:
        """Grow the islands over cheap nodes, as long as that saves casts.

        A lone float16 node between two islands costs two casts and gains nothing.
        """
        changed = True
        while changed:
            changed = False
            for node in self._graph:
                if self._is_single(node) or node.op_type in (*PRODUCTS, "Cast"):
                    continue
                values = {v for v in (*node.inputs, *node.outputs) if v and _is_activation(v)}
                before = sum(map(self._is_cast, values))
                self.nodes[node.name or ""] = RuleName.FEWER_CASTS
                if sum(map(self._is_cast, values)) < before:
                    changed = True
                else:
                    del self.nodes[node.name or ""]

    def _is_single(self, node: ir.Node) -> bool:
        return node.name in self.nodes

    def _is_cast(self, value: ir.Value) -> bool:
        """True if some reader of this value needs another type than it has."""
        producer = value.producer()
        kept = value.name in self.face
        single = kept if producer is None else self._is_single(producer)
        # A reader without a float result (Shape, say) takes any type.
        readers = {
            self._is_single(use.node)
            for use in value.uses()
            if use.node.outputs[0].dtype == ir.DataType.FLOAT
        }
        return not (readers | ({kept} if value.is_graph_output() else set())) <= {single}

    def _keep(self, node: ir.Node, rule: RuleName) -> None:
        self.nodes.setdefault(node.name or "", rule)

    def _keep_value(self, value: ir.Value, rule: RuleName) -> None:
        """The value stays float32 wherever it goes."""
        if value.dtype != ir.DataType.FLOAT:
            return
        for node in (value.producer(), *(use.node for use in value.uses())):
            if node is not None:
                self._keep(node, rule)
        if value.is_graph_output() or value.is_graph_input():
            self.face.add(value.name or "")

    def _keep_sources(self, node: ir.Node, rule: RuleName) -> None:
        """All that feeds the node computes in float32, up to where its numbers are made.

        A node with one computed input (a scaling, a mask's addition, a transposition) only passes
        on what was rounded before it.
        """
        for value in self._computed(node):
            producer = value.producer()
            if producer is None:
                self._keep_value(value, rule)
                continue
            self._keep(producer, rule)
            if producer.op_type not in PRODUCTS and len(self._computed(producer)) == 1:
                self._keep_sources(producer, rule)

    def _computed(self, node: ir.Node) -> list[ir.Value]:
        """The node's float inputs that depend on the sample by more than selection."""
        return [v for v in node.inputs if v and _is_activation(v) and v not in self._constants]


def _is_activation(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and not value.is_initializer()


def _broken(layer: LayerMeasure | None) -> Iterator[tuple[Rule, float]]:
    """The rules that a layer breaks; a number that is no number breaks them, too."""
    if layer is not None:
        for rule in RULES:
            number = rule.number(layer)
            if not number <= rule.limit:
                yield rule, number
