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
    """Give a stage as one ONNX file that holds its weights and computes in float32.

    Raises InputError if a weight is too large for float16.
    """
    model = onnx.load(bundle.graph(stage))
    _compute_in_single(model.graph)
    if weights is Weights.FP16:
        _store_as_half(model.graph, stage)
    return bytes(model.SerializeToString())


def _compute_in_single(graph: onnx.GraphProto) -> None:
    """Type as float32 what is float16: WebAssembly has no float16, and a runtime that works around
    that casts before and after each node, or crashes."""
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for tensor in graph.initializer:
        if tensor.data_type == half:
            _widen(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = single
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == half:
                _widen(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                attribute.i = single  # from float32 it does nothing now, and a runtime drops it


def _widen(tensor: onnx.TensorProto) -> None:
    values = numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


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
