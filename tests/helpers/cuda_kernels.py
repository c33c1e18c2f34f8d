"""Which nodes of a graph ONNX Runtime's CUDA provider has a kernel for, by a table of its kernels.

The rule of a match is ONNX Runtime's: a kernel for a range of versions takes those, one without an
end takes the version it begins with and no later definition of the operator.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

TABLE = Path(__file__).parents[1] / "data" / "cuda_kernels.json"

_TYPE_NAMES = {
    **{number: onnx.helper.tensor_dtype_to_np_dtype(number).name for number in (1, 6, 7, 3, 9, 10)},
    TensorProto.FLOAT: "float",
}


@dataclass(frozen=True)
class Kernel:
    """For which versions of an operator, and which element types by type parameter or argument."""

    since: int
    until: int | None
    types: Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Stranger:
    """A node that no CUDA kernel takes."""

    op_type: str
    name: str
    types: tuple[str, ...]


@cache
def table() -> tuple[str, dict[str, list[Kernel]]]:
    """The version of ONNX Runtime, and its kernels by operator."""
    document = json.loads(TABLE.read_text())
    kernels: dict[str, list[Kernel]] = {}
    for row in document["kernels"]:
        types = {name: frozenset(text.split()) for name, text in row["types"].items()}
        kernels.setdefault(row["op"], []).append(Kernel(row["since"], row["until"], types))
    return document["version"], kernels


def strangers(model: onnx.ModelProto, *, folded: bool = False) -> Iterator[Stranger]:
    """The nodes without a kernel, but for those that are computed when a session is made.

    Those are the nodes that read nothing but constants; if that was done, they are `folded`, and
    none is let off. Shapes are no constants: a session serves all batch sizes, and `Shape` and what
    follows it run on the CPU.
    """
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = inferred.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info,)}
    types |= {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    constants = {tensor.name for tensor in graph.initializer} | {""}
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for node in graph.node:
        if not folded and all(name in constants for name in node.input):
            constants.update(node.output)
            continue
        found = tuple(_TYPE_NAMES.get(types[name], "?") if name else "" for name in node.input)
        made = tuple(_TYPE_NAMES.get(types[name], "?") if name else "" for name in node.output)
        if node.op_type == "Shape" or not _has_kernel(node, found, made, opsets[node.domain]):
            yield Stranger(node.op_type, node.name, found)


def _has_kernel(
    node: onnx.NodeProto, inputs: tuple[str, ...], outputs: tuple[str, ...], opset: int
) -> bool:
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    actual: dict[str, set[str]] = {}
    for formals, given in ((schema.inputs, inputs), (schema.outputs, outputs)):
        for index, name in enumerate(given):
            formal: Any = formals[min(index, len(formals) - 1)]  # the last may be variadic
            if name:
                actual.setdefault(formal.type_str, set()).add(name)
                actual.setdefault(formal.name, set()).add(name)
    return any(
        _takes(kernel, schema.since_version)
        and all(actual.get(key, set()) <= allowed for key, allowed in kernel.types.items())
        for kernel in table()[1].get(node.op_type, ())
        if node.domain == ""
    )


def _takes(kernel: Kernel, version: int) -> bool:
    if kernel.until is None:
        return kernel.since == version
    return kernel.since <= version <= kernel.until


def model_of(nodes: list[onnx.NodeProto], **inputs: Any) -> onnx.ModelProto:
    """A graph of nodes over inputs given as arrays, whose type and shape they have."""
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(np.asarray(value).dtype), value.shape
            )
            for name, value in inputs.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(nodes[-1].output[0])],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
