"""All weights of a bundle in one file, each stored once, and graphs that point into it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import onnx
import onnx.compose
import onnx_ir as ir

from cris_deploy.bundle.reading import WEIGHTS

# Smaller tensors stay in the graph: shape constants have to, or shape inference cannot see them.
INLINE_BYTES = 1024
# Runtimes map the file; a large tensor on a page boundary is mapped without a copy.
PAGE = 4096
CACHE_LINE = 64


class WeightFile:
    """Writes initializers to one external data file; equal contents share their bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None
        self._known: dict[bytes, tuple[int, int]] = {}

    def __enter__(self) -> WeightFile:
        self._file = (self.folder / WEIGHTS).open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.close()

    def externalise(self, model: ir.Model) -> None:
        """Move the model's large initializers into the file; the model then only points there."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            assert tensor is not None
            assert value.shape is not None
            if tensor.nbytes < INLINE_BYTES:
                continue
            offset, length = self._store(tensor.tobytes())
            value.const_value = ir.ExternalTensor(
                WEIGHTS,
                offset,
                length,
                tensor.dtype,
                shape=value.shape,
                name=value.name or "",
                base_dir=self.folder,
            )

    def _store(self, data: bytes) -> tuple[int, int]:
        assert self._file is not None
        key = hashlib.sha256(data).digest()
        if key not in self._known:
            align = PAGE if len(data) >= PAGE else CACHE_LINE
            padding = -self._file.tell() % align
            self._file.write(b"\0" * padding)
            self._known[key] = (self._file.tell(), len(data))
            self._file.write(data)
        return self._known[key]


def compose_full(stages: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """Join the three stage graphs into the full one: image and tokens in, logits out.

    The stages' nodes and weights are taken as they are, so that the full graph cannot differ from
    the stages and adds no weights. Values that one stage hands to another keep their names, which
    is what connects them; all others get their stage's name as prefix.

    Args:
        stages: Image encoder, text encoder and mask decoder, in this order.
    """
    full = onnx.ModelProto()
    full.CopyFrom(stages[0])
    full.ClearField("graph")
    full.graph.name = "full"
    for stage in stages:
        graph = onnx.compose.add_prefix_graph(
            stage.graph, f"{stage.graph.name}/", rename_inputs=False, rename_outputs=False
        )
        full.graph.initializer.extend(graph.initializer)
        full.graph.node.extend(graph.node)
    image, text, mask = (stage.graph for stage in stages)
    full.graph.input.extend([*image.input, *text.input])
    full.graph.output.extend(mask.output)
    return full
