"""Tracing takes most of a small model's export: for the tests, each model is traced once."""

import copy
import hashlib

import onnx_ir as ir
import torch
from torch import Tensor

from cris_export.graph import trace
from cris_export.graph.stages import Stages
from cris_train.model import CrisConfig


class TracedOnce:
    """`trace_stages` with a memory: a model that was traced before comes as a copy of its graphs.

    The copies share the weights' arrays, which an export replaces and never writes to.
    """

    def __init__(self) -> None:
        self._trace = trace.trace_stages
        self._known: dict[str, dict[str, ir.Model]] = {}

    def __call__(self, stages: Stages, config: CrisConfig, opset: int) -> dict[str, ir.Model]:
        key = _fingerprint(stages, config, opset)
        if key not in self._known:
            self._known[key] = self._trace(stages, config, opset)
        return {name: _copy(model) for name, model in self._known[key].items()}


def _copy(model: ir.Model) -> ir.Model:
    copied = model.clone()
    graph = copied.graph
    made = (output for node in graph for output in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *made):
        value.type = copy.copy(value.type)  # a clone shares it, and `dtype` is set inside it
    return copied


def _fingerprint(stages: Stages, config: CrisConfig, opset: int) -> str:
    """Tell apart whatever can make another graph: shapes come of the configuration."""
    digest = hashlib.sha256(f"{config} {opset}".encode())
    for stage in stages:
        for name, value in (*stage.named_parameters(), *stage.named_buffers()):
            digest.update(name.encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> memoryview:
    return memoryview(value.detach().reshape(-1).view(torch.uint8).numpy())
