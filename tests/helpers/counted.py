"""An engine whose stages count what they are given."""

from collections.abc import Mapping
from typing import Any

from cris_deploy import Engine
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.execution.backends import Graph


class Counting:
    """A graph that counts its runs and the rows it was given."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.runs, self.rows = graph, 0, 0

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.runs += 1
        self.rows += len(next(iter(inputs.values())))
        return self.graph.run(inputs)


def count(engine: Engine) -> dict[GraphName, Counting]:
    """Count from here on; the mask decoder's rows are its expressions."""
    graphs = {name: Counting(graph) for name, graph in engine.pipeline.stages.items()}
    engine.pipeline.wrap_stages(lambda name, _: graphs[name])
    return graphs
