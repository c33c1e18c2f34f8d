"""Which nodes of a float16 graph compute in float32: those that break a rule, and as few others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from cris_export.precision.ranges import EXACT, GraphMeasures
from cris_export.precision.rules import PRODUCTS, Reach, RuleName, broken


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
            for rule, number in broken(measures.inputs.get(name)):
                self.findings.append(Finding(name, "Input", rule.name, number, rule.limit))
                self._keep_value(value, rule.name)
        for node in self._graph:
            name = node.name or ""
            for rule, number in broken(measures.layers.get(name)):
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
