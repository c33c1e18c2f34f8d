"""A float16 graph as a machine with float16 kernels computes it, on a CPU that has none.

ONNX Runtime's CPU provider computes a float16 graph in float32 and drops the casts between
neighbours: most results are never rounded, and none can overflow. What it gives says little about
a GPU. Here every float16 result is rounded, and sums inside an operator stay float32, as on tensor
cores.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from cris_export.precision.ranges import EXACT, float_values

_HALF, _SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT


def emulate_float16(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite a float16 graph in float32, with each float16 result rounded where it is made.

    Args:
        proto: The typed graph; left as it is. A graph without float16 comes back unchanged.

    Returns:
        A graph whose inputs, outputs and values keep their names and are float32, holding what
        float16 would; stored weights keep their type.
    """
    half = {name for name, dtype in float_values(proto).items() if dtype == _HALF}
    emulated = onnx.ModelProto()
    emulated.CopyFrom(proto)
    graph = emulated.graph
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == _HALF}
    if not half and not weights:
        return emulated
    nodes: list[onnx.NodeProto] = []

    def cast(source: str, target: str, to: int) -> None:
        nodes.append(helper.make_node("Cast", [source], [target], f"{target}/cast", to=to))

    def round_to(source: str, target: str) -> None:
        """`target` is what float16 holds of `source`, in float32."""
        cast(source, f"{target}/half", _HALF)
        cast(f"{target}/half", target, _SINGLE)

    renamed: dict[str, str] = {}
    for name in sorted(weights):
        renamed[name] = f"{name}/single"
        cast(name, renamed[name], _SINGLE)
    for value in graph.input:
        if value.name in half:
            renamed[value.name] = f"{value.name}/rounded"
            round_to(value.name, renamed[value.name])
    for node in proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        rounds = [name for name in node.output if name in half]
        if node.op_type == "Cast" and rounds:
            round_to(copy.input[0], node.output[0])
            continue
        nodes.append(copy)
        if node.op_type not in EXACT:
            copy.output[:] = [f"{n}/exact" if n in rounds else n for n in node.output]
            for name in rounds:
                round_to(f"{name}/exact", name)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        if value.name in half:
            value.type.tensor_type.elem_type = _SINGLE
    return emulated
