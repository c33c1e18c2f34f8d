"""In which types a network is written, and in which its plan computes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cris_export.plans.watch import BuildLog

# What a builder says of the layers of a plan it has made (DETAILED verbosity), a line each.
_LAYERS = "Layers:"
_TENSORS = re.compile(r"(Inputs|Outputs): \[(.*?)\](?=, (?:Constants|TacticName))")
_DATATYPE = re.compile(r"Datatype: (\w+)")
_COMPUTED = ("int8", "float16", "bfloat16", "float32")
_TYPE_NAMES = {"half": "float16", "float": "float32", "bf16": "bfloat16", "bfloat16": "bfloat16"}
# Where a network's time goes; what these give is what the network computes in.
_PRODUCTS = {"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM"}


@dataclass(frozen=True)
class TypeCount:
    """Layers of a network by the element type of their result, and those that are products.

    Attributes:
        layers: All but constants and casts.
        products: Convolutions and matrix products.
    """

    layers: Mapping[str, int]
    products: Mapping[str, int]


def count_types(network: Any) -> TypeCount:
    """Count a network's layers by the type of their result."""
    layers: Counter[str] = Counter()
    products: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = layer.type.name
        if kind in ("CONSTANT", "CAST") or not layer.num_outputs:
            continue
        dtype = type_name(layer.get_output(0).dtype)
        layers[dtype] += 1
        if kind in _PRODUCTS:
            products[dtype] += 1
    return TypeCount(dict(sorted(layers.items())), dict(sorted(products.items())))


def count_kernels(log: BuildLog) -> dict[str, int]:
    """Count a plan's layers by the type they compute in, from what the builder said of them.

    That is int8 for a layer that reads it, and else the type of the first result; layers of shapes,
    indices and masks do not count. The same as an inspector gives, but without a GPU.
    """
    kernels: Counter[str] = Counter()
    for line in "\n".join(log.starting_with(_LAYERS)).splitlines():
        types = {name: _DATATYPE.findall(tensors) for name, tensors in _TENSORS.findall(line)}
        read, given = types.get("Inputs", []), types.get("Outputs", [])
        dtype = "int8" if "Int8" in read else _TYPE_NAMES.get(given[0].lower(), "") if given else ""
        if dtype in _COMPUTED:
            kernels[dtype] += 1
    return dict(sorted(kernels.items()))


def type_name(dtype: Any) -> str:
    """Name an element type as ONNX and NumPy do."""
    name: str = dtype.name.lower()
    return _TYPE_NAMES.get(name, name)
