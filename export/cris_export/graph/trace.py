"""PyTorch modules -> ONNX graphs, in memory, with a free batch."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from cris_deploy.errors import InputError
from cris_export.errors import ExportError
from cris_export.graph.stages import Stages
from cris_train.model import CrisConfig

# 18 is the first the exporter writes natively; from 23 on it emits the Attention operator, which
# ONNX Runtime's CPU provider rejects with a broadcast padding mask.
OPSETS = range(18, 23)
DEFAULT_OPSET = 20


@dataclass(frozen=True)
class Interface:
    """Names of one graph's inputs and outputs, and of its free dimension at each.

    Attributes:
        inputs: Name of each input -> name of its first, free dimension.
        outputs: Name of each output -> name of its first, free dimension.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]


IMAGE_ENCODER = Interface({"image": "batch"}, {"f3": "batch", "f4": "batch", "f5": "batch"})
TEXT_ENCODER = Interface(
    {"tokens": "batch"}, {"words": "batch", "sentence": "batch", "padding": "batch"}
)
# `images` is 1 or `batch`: the features of one image are broadcast over all its expressions.
MASK_DECODER = Interface(
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
    name: str, module: nn.Module, args: tuple[Tensor, ...], spec: Interface, opset: int
) -> ir.Model:
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        with quiet(), _unfused():
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
    _fix_reshapes(model)
    _drop_provenance(model)
    return model


def _name_dimensions(model: ir.Model, spec: Interface) -> None:
    """One symbol served while tracing; the graph's face gets a name for each free dimension."""
    for values, names in ((model.graph.inputs, spec.inputs), (model.graph.outputs, spec.outputs)):
        for value in values:
            assert value.name is not None
            assert value.shape is not None
            value.shape = ir.Shape([names[value.name], *value.shape[1:]])


def _fix_reshapes(model: ir.Model) -> None:
    """Write down the shapes that the exporter has a graph compute: only the batch is free in them.

    Arithmetic on shapes runs on the CPU, wherever the graph runs: ONNX Runtime's CUDA provider then
    cannot have all nodes, unless each batch size gets a session, with weights, of its own.
    """
    known: dict[ir.Value, list[int]] = {}  # the free dimension as -1, which is Reshape's, too

    def numbers(value: ir.Value | None) -> list[int] | None:
        if value is None or value.const_value is None:
            return None if value is None else known.get(value)
        if value.dtype != ir.DataType.INT64:  # shapes have no other
            return None
        return [int(number) for number in value.const_value.numpy().ravel()]

    for node in list(model.graph):
        result = node.outputs[0]
        given = [numbers(value) for value in node.inputs]
        parts = [part for part in given if part is not None]
        whole = len(parts) == len(given)
        if node.op_type == "Shape":
            shape = None if node.inputs[0] is None else node.inputs[0].shape
            if shape is not None:  # it never has more than one free dimension, the batch
                start, end = (node.attributes.get_int(key, None) for key in ("start", "end"))
                sides = [side if isinstance(side, int) else -1 for side in shape]
                known[result] = sides[start:end]
        elif node.op_type == "Slice" and whole and len(parts) == 3:
            known[result] = parts[0][parts[1][0] : parts[2][0]]
        elif node.op_type == "Concat" and whole:
            known[result] = [side for part in parts for side in part]
        elif node.op_type == "Reshape" and node.inputs[1] in known:
            tensor = ir.tensor(np.array(given[1], np.int64), name=f"{node.name}_shape")
            value = ir.Value(name=tensor.name, const_value=tensor)
            value.shape, value.dtype = ir.Shape(tensor.shape.numpy()), tensor.dtype
            model.graph.register_initializer(value)
            node.replace_input_with(1, value)
    for node in reversed(list(model.graph)):
        if node.outputs[0] in known and not node.outputs[0].uses():
            model.graph.remove(node, safe=True)
    for name in [n for n, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]


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
def quiet() -> Iterator[None]:
    """Keep the exporter's progress and advice off the user's screen; its errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            open(os.devnull, "w") as nowhere,  # noqa: PTH123 - a device, not a path
            contextlib.redirect_stdout(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _unfused() -> Iterator[None]:
    """Do without the fused path of nn.MultiheadAttention, which has no ONNX form."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
