"""Engines whose stages count what they are given, and results against the full graph's."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from cris_deploy import Engine, Segmentation
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.execution.backends import Graph

TOLERANCE: Final = 1e-4
"""Same graph, other batch size: float32 sums in another order, of values up to about 10."""


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


def check(
    result: Segmentation,
    image: np.ndarray,
    expression: str,
    reference: Callable[[np.ndarray, str], tuple[np.ndarray, np.ndarray]],
) -> None:
    """Compare with the logits and the mask of the full graph."""
    logits, mask = reference(image, expression)
    assert result.expression == expression
    assert result.logits.dtype == np.float32
    assert result.mask.dtype == np.bool_
    assert result.mask.shape == image.shape[:2]
    np.testing.assert_allclose(result.logits, logits, atol=TOLERANCE)
    assert (result.mask != mask).mean() < 0.01  # a pixel may lie within TOLERANCE of the threshold
