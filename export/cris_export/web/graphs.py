"""A bundle's three stages as files of their own, with smaller weights where that is asked for."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cris_deploy.bundle.manifest import GraphName
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import InputError

_LEAST_ELEMENTS: Final = 256
"""Smaller weights stay as they are: scales, biases and shapes are few bytes."""


class Weights(StrEnum):
    """How weights are stored; the arithmetic stays float32."""

    FP32 = "fp32"
    FP16 = "fp16"


def stage_file(bundle: Bundle, stage: GraphName, weights: Weights) -> bytes:
    """Give a stage as one ONNX file that holds its weights.

    Raises InputError if a weight is too large for float16.
    """
    model = onnx.load(bundle.graph(stage))
    if weights is Weights.FP16:
        _store_as_half(model.graph, stage)
    return bytes(model.SerializeToString())


def _store_as_half(graph: onnx.GraphProto, stage: GraphName) -> None:
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < _LEAST_ELEMENTS:
            continue
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if (np.isinf(half) & np.isfinite(values)).any():
            raise InputError(
                f"weights fp16: float16 does not hold all of {tensor.name} of {stage}: take fp32"
            )
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        # A runtime folds this when it loads the graph.
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
