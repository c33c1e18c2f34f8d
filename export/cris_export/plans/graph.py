"""A bundle's graph as TensorRT can read it: the same numbers from the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper


def readable(path: Path) -> bytes:
    """A graph with what TensorRT cannot read put as it can: the same numbers from the same weights.

    An int8 table whose rows are looked up and then scaled becomes a scaled table whose rows are
    looked up, because TensorRT takes int8 constants only in front of a DequantizeLinear. On a CPU
    that order would compute the whole table in every run, so it is not the bundle's.
    """
    try:
        proto = onnx.load(path, load_external_data=False)
    except DecodeError:
        return path.read_bytes()  # TensorRT's parser says what is wrong, and the log keeps it
    graph = proto.graph
    tables = {t.name: t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    makers = {output: node for node in graph.node for output in node.output}
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in tables]
    for lookup in lookups:
        product = next(
            node
            for node in graph.node
            if node.op_type == "Mul" and _way(makers, node.input[0])[-1] is lookup
        )
        rows, steps = (_way(makers, name) for name in product.input)
        table = tables[lookup.input[0]]
        zero = numpy_helper.from_array(np.zeros(table.dims[0], np.int8), f"{table.name}_zero")
        graph.initializer.append(zero)
        scaled = onnx.helper.make_node(
            "DequantizeLinear",
            [table.name, steps[-1].input[0], zero.name],
            [f"{table.name}_scaled"],
            name=f"{table.name}_dequantize",
            axis=0,
        )
        place = list(graph.node).index(lookup)
        lookup.input[0], lookup.output[0] = scaled.output[0], product.output[0]
        for node in (*rows[:-1], *steps, product):
            graph.node.remove(node)
        graph.node.insert(place, scaled)
    data: bytes = proto.SerializeToString()
    return data


def _way(makers: Mapping[str, onnx.NodeProto], name: str) -> list[onnx.NodeProto]:
    """The nodes behind a value, back to the first that is no Cast and adds no axis."""
    way = [makers[name]]
    while way[-1].op_type in {"Cast", "Unsqueeze"}:
        way.append(makers[way[-1].input[0]])
    return way
