"""The graphs of an export, of untrained weights: their nodes and types, not their numbers.

int8 is laid out without calibration: every tensor is said to hold nothing but ones.
"""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import torch

from cris_deploy.bundle.manifest import GraphName, Precision
from cris_export.graph.stages import build_stages
from cris_export.graph.trace import trace_stages
from cris_export.graph.weights import INLINE_BYTES, compose_full
from cris_export.precision.float16 import to_float16
from cris_export.precision.int8.calibration import Observation
from cris_export.precision.int8.quantise import halve_maps, quantise, quantise_embedding
from cris_export.precision.int8.rounding import round_weights
from cris_export.precision.int8.sites import find_sites, fold_weight_slices, residual_values
from cris_export.precision.islands import Islands
from cris_export.precision.rules import RuleName
from cris_train.model import Cris, CrisConfig

_ONE = int(np.float32(1).view(np.uint32) >> 17)  # where a histogram counts it
_BINS = 1 << 14


def exported_graphs(
    config: CrisConfig, opset: int = 20
) -> dict[Precision, dict[GraphName, onnx.ModelProto]]:
    """All four graphs in all three precisions."""
    torch.manual_seed(0)
    model = Cris(config).eval().requires_grad_(False)
    traced = trace_stages(build_stages(model), config, opset)
    graphs = {}
    # float16 comes last: it changes the types of values, which clones share.
    for precision in (Precision.FP32, Precision.INT8, Precision.FP16):
        stages = {name: stage.clone() for name, stage in traced.items()}
        for stage in stages.values():
            if precision is Precision.FP16:
                to_float16(stage, _islands(stage), keep=frozenset({"image", "logits"}))
            elif precision is Precision.INT8:
                _quantise(stage)
        protos = [_without_weights(stage) for stage in stages.values()]
        names = [GraphName(name) for name in stages]
        graphs[precision] = {
            **dict(zip(names, protos, strict=True)),
            GraphName.FULL: compose_full(protos),
        }
    return graphs


def _islands(stage: ir.Model) -> Islands:
    """Norms and softmaxes in float32, as models may need them: so there are casts to and fro."""
    kept = [n for n in stage.graph if n.op_type in ("LayerNormalization", "Softmax")]
    return Islands({node.name or "": RuleName.RANGE for node in kept}, frozenset(), ())


def _quantise(stage: ir.Model) -> None:
    fold_weight_slices(stage)
    sites = find_sites(stage)
    residuals = residual_values(stage, sites)
    watched = [*(site.source for site in sites), *residuals]
    seen = {value.name or "": _observation(value) for value in watched}
    rounded = round_weights(sites, seen)
    halve_maps(stage)
    quantise(stage, sites, residuals, seen, rounded)
    quantise_embedding(stage)


def _observation(value: ir.Value) -> Observation:
    assert value.shape is not None
    channels = value.shape[1 if len(value.shape) == 4 else -1]
    assert isinstance(channels, int)
    counts = np.zeros(_BINS, np.int64)
    counts[_ONE] = 1
    return Observation(counts, np.ones(channels, np.float32), np.zeros(channels), 1)


def _without_weights(stage: ir.Model) -> onnx.ModelProto:
    """The graph with its large weights said to lie in a file, of which there is no need here."""
    weights: Mapping[str, ir.Value] = stage.graph.initializers
    for value in weights.values():
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes >= INLINE_BYTES:
            value.const_value = ir.ExternalTensor(
                "weights.bin", 0, tensor.nbytes, tensor.dtype, shape=tensor.shape,
                name=value.name or "",
            )  # fmt: skip
    return ir.to_proto(stage)
