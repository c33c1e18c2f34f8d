"""PyTorch modules -> ONNX graphs, in memory, with a free batch."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from cris_deploy.errors import ExportError, InputError
from cris_export.stages import Stages
from cris_train.model import CrisConfig

# 18 is the first the exporter writes natively; from 23 on it emits the Attention operator, which
# ONNX Runtime's CPU provider rejects with a broadcast padding mask.
OPSETS = range(18, 23)
DEFAULT_OPSET = 20


@dataclass(frozen=True)
class GraphSpec:
    """Names of one graph's inputs and outputs, and of its free dimension at each.

    Attributes:
        inputs: Name of each input -> name of its first, free dimension.
        outputs: Name of each output -> name of its first, free dimension.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]


IMAGE_ENCODER = GraphSpec({"image": "batch"}, {"f3": "batch", "f4": "batch", "f5": "batch"})
TEXT_ENCODER = GraphSpec(
    {"tokens": "batch"}, {"words": "batch", "sentence": "batch", "padding": "batch"}
)
# `images` is 1 or `batch`: the features of one image are broadcast over all its expressions.
MASK_DECODER = GraphSpec(
    {
        "words": "batch",
        "sentence": "batch",
        "padding": "batch",
        "f3": "images",
        "f4": "images",
        "f5": "images",
    },
    {"logits": "batch"},
)


def trace_stages(stages: Stages, config: CrisConfig, opset: int) -> dict[str, ir.Model]:
    """Trace the three stages.

    Returns:
        Stage name -> model whose weights still lie in the modules (nothing is copied).

    Raises:
        InputError: the opset is not supported.
        ExportError: the exporter failed.
    """
    if opset not in OPSETS:
        raise InputError(
            f"--opset must be {OPSETS.start} to {OPSETS.stop - 1}, not {opset} "
            f"(leave it out for {DEFAULT_OPSET})"
        )
    # Two samples, so that no dimension is taken for a constant 1.
    image = torch.zeros(2, 3, config.input_size, config.input_size)
    tokens = torch.zeros(2, config.word_len, dtype=torch.int64)
    with torch.no_grad():
        features = stages.image_encoder(image)
        text = stages.text_encoder(tokens)
    return {
        name: _trace(name, module, args, spec, opset)
        for name, module, args, spec in (
            ("image_encoder", stages.image_encoder, (image,), IMAGE_ENCODER),
            ("text_encoder", stages.text_encoder, (tokens,), TEXT_ENCODER),
            ("mask_decoder", stages.mask_decoder, (*text, *features), MASK_DECODER),
        )
    }


def _trace(
    name: str, module: nn.Module, args: tuple[Tensor, ...], spec: GraphSpec, opset: int
) -> ir.Model:
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                args,
                dynamo=True,
                opset_version=opset,
                input_names=list(spec.inputs),
                output_names=list(spec.outputs),
                dynamic_shapes=tuple({0: batch} for _ in args),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever went wrong in types of its own
        raise ExportError(f"tracing {name} to opset {opset} failed: {error}") from error
    assert program is not None
    model = program.model
    model.graph.name = name
    _name_dimensions(model, spec)
    _drop_provenance(model)
    return model


def _name_dimensions(model: ir.Model, spec: GraphSpec) -> None:
    """One symbol served while tracing; the graph's face gets a name for each free dimension."""
    for values, names in ((model.graph.inputs, spec.inputs), (model.graph.outputs, spec.outputs)):
        for value in values:
            assert value.name is not None
            assert value.shape is not None
            value.shape = ir.Shape([names[value.name], *value.shape[1:]])


def _drop_provenance(model: ir.Model) -> None:
    """Stack traces and file names of the exporting machine have no place in a shipped graph."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and advice off the user's screen; its errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    fast = torch.backends.mha.get_fastpath_enabled()
    logger.setLevel(logging.ERROR)
    # The fused path of nn.MultiheadAttention has no ONNX form.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w") as nowhere,  # noqa: PTH123 - a device, not a path
            contextlib.redirect_stdout(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast)
