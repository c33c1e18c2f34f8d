"""A float32 graph becomes a typed float16 graph: the precision lies in the graph, nowhere else.

TensorRT 11 has no precision flags any more, and a runtime that meets a typed graph cannot choose
another precision silently. What stays float32, and why, is decided in `islands.py` on measured
numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from cris_export.errors import ExportError
from cris_export.precision.islands import NO_ISLANDS, Islands
from cris_export.precision.rules import FLOAT16_MAX

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def to_float16(
    model: ir.Model, islands: Islands = NO_ISLANDS, *, keep: frozenset[str] = frozenset()
) -> None:
    """Type a float32 graph as float16, in place.

    Weights become float16, and so do all results but those of the islands' nodes. A `Cast` stands
    wherever a tensor crosses, once per tensor.

    Args:
        model: The graph.
        islands: What computes in float32, and which inputs and outputs have it.
        keep: More inputs and outputs that keep float32, whatever computes them.

    Raises:
        ExportError: a weight outside the islands does not fit float16's range.
    """
    graph = model.graph
    opset = model.opset_imports[""]
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def cast(value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another type, through one shared Cast."""
        key = (value, dtype)
        if key not in casts:
            node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{value.name}_{dtype.name}")
            casts[key] = node.outputs[0]
            casts[key].name = f"{value.name}_{dtype.name.lower()}"
            casts[key].shape, casts[key].dtype = value.shape, dtype
            producer = value.producer()
            if producer is None:
                graph.insert_before(graph[0], node)
            else:
                graph.insert_after(producer, node)
        return casts[key]

    halves: dict[ir.Value, ir.Value] = {}

    def fit(value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in this type; weights are converted, not cast."""
        if value.dtype == dtype:
            return value
        if value.is_initializer() and dtype == ir.DataType.FLOAT16:
            if value not in halves:
                halves[value] = _half_initializer(graph, value)
            return halves[value]
        return cast(value, dtype)

    kept = keep | islands.face
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT and value.name not in kept:
            value.dtype = ir.DataType.FLOAT16
    for node in list(graph):
        dtype = ir.DataType.FLOAT if node.name in islands.nodes else ir.DataType.FLOAT16
        if node.op_type == "Cast":
            _retype_cast(node, dtype)
            continue
        types = _types(node, opset)
        shared: dict[str, ir.DataType] = {}
        for index, source in enumerate(node.inputs):
            if source is None or source.dtype not in FLOATS:
                continue
            if types.follows[index]:
                node.replace_input_with(index, fit(source, dtype))
            elif not types.takes_half[index]:
                node.replace_input_with(index, fit(source, ir.DataType.FLOAT))
            else:  # a QuantizeLinear's step has the type of what it rounds, whichever that is
                if node.op_type == "QuantizeLinear" and node.name in islands.nodes:
                    source_type = ir.DataType.FLOAT
                else:
                    source_type = source.dtype
                wanted = shared.setdefault(types.variables[index], source_type)
                node.replace_input_with(index, fit(source, wanted))
        if node.outputs[0].dtype in FLOATS:
            for output in node.outputs:
                if output.dtype in FLOATS:
                    output.dtype = dtype
    for index, output in enumerate(graph.outputs):
        if output.dtype not in FLOATS:
            continue
        wanted = ir.DataType.FLOAT if output.name in kept else ir.DataType.FLOAT16
        if output.dtype != wanted:
            name = output.name
            output.name = f"{name}_{output.dtype.name.lower()}"
            final = cast(output, wanted)
            final.name = name
            graph.outputs[index] = final
    for name in [n for n, v in graph.initializers.items() if not v.uses()]:
        del graph.initializers[name]


@dataclass(frozen=True)
class _NodeTypes:
    """For each input: has it the first output's type, and may it be float16 if not.

    Inputs of one type variable have one type.
    """

    follows: tuple[bool, ...]
    takes_half: tuple[bool, ...]
    variables: tuple[str, ...]


def _types(node: ir.Node, opset: int | None) -> _NodeTypes:
    """Inputs of the same type variable as the output follow its precision.

    So a `Resize` keeps the float32 its scales must have, while its picture becomes float16, and a
    `Shape` takes whatever there is.
    """
    schema = onnx.defs.get_schema(node.op_type, opset or 20, node.domain)
    names = [parameter.type_str for parameter in schema.inputs]
    while len(names) < len(node.inputs):  # variadic: Concat, Sum
        names.append(names[-1])
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    output = schema.outputs[0].type_str
    return _NodeTypes(
        follows=tuple(name == output for name in names),
        takes_half=tuple("tensor(float16)" in allowed.get(name, [name]) for name in names),
        variables=tuple(names),
    )


def _retype_cast(node: ir.Node, dtype: ir.DataType) -> None:
    """The exporter's own casts to float32 (of a mask, say) follow the graph's type."""
    if node.outputs[0].dtype == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", int(dtype))
        node.outputs[0].dtype = dtype


def _half_initializer(graph: ir.Graph, value: ir.Value) -> ir.Value:
    assert value.const_value is not None
    array = value.const_value.numpy()
    # An infinity is meant: it masks the words after the present one.
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
    if largest > FLOAT16_MAX:
        raise ExportError(
            f"weight {value.name} reaches {largest:.3g}, beyond float16's {FLOAT16_MAX:.0f}; "
            f"export without --fp16"
        )
    tensor = ir.tensor(array.astype(np.float16), name=f"{value.name}_float16")
    half = ir.Value(
        name=tensor.name,
        shape=value.shape,
        type=ir.TensorType(ir.DataType.FLOAT16),
        const_value=tensor,
    )
    graph.register_initializer(half)
    return half
