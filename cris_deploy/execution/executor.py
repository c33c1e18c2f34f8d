"""The engine's steps from letterboxed images and tokens to masks, on one kind of device.

The engine keeps a stage's features and hands them to the next stage without looking inside; on a
CPU they are arrays, on a GPU tensors that stay there (`execution.cuda.executor`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cris_deploy.bundle.manifest import ModelFacts
from cris_deploy.execution.backends import Device, Graph
from cris_deploy.pixels import image as images
from cris_deploy.pixels import mask as masks
from cris_deploy.pixels.image import Pixels

Features: TypeAlias = dict[str, Any]
"""Outputs of a stage by name for one image or expression, first axis 1."""


@dataclass(frozen=True, slots=True)
class MaskStep:
    """How logits become a mask: the threshold, and whether the probabilities are wanted, too."""

    threshold: float
    probabilities: bool = False


Decoded: TypeAlias = tuple[masks.UpsampledMask, NDArray[np.float32], MaskStep]
"""A mask at image size, the logits (h, w) it was made of, and how."""

# Expressions per run of the mask decoder on a CPU: beyond this only the memory grows.
_CHUNK: Final = 8


class Executor(Protocol):
    """How the three stages are run. May be used from many threads."""

    @property
    def mask_device(self) -> Device:
        """Where the mask step is done."""

    def encode_images(self, graph: Graph, squares: Sequence[Pixels]) -> list[Features]:
        """Encode letterboxed images (S, S, 3) uint8 RGB, each once."""

    def encode_texts(self, graph: Graph, tokens: NDArray[np.int64]) -> list[Features]:
        """Encode tokens (n, L)."""

    def decode(
        self,
        graph: Graph,
        scenes: Sequence[Features],
        texts: Sequence[Features],
        sizes: Sequence[tuple[int, int]],
        how: Sequence[MaskStep],
    ) -> list[Decoded]:
        """Segment scenes with texts in pairs; `sizes` are the images' (height, width)."""

    def close(self) -> None:
        """Let go of what it holds."""


class HostExecutor:
    """Everything in the host's memory."""

    mask_device: Final = Device.CPU
    """Where the mask step is done."""

    def __init__(self, model: ModelFacts, threads: int | None) -> None:
        self._model = model
        self._threads = threads

    def encode_images(self, graph: Graph, squares: Sequence[Pixels]) -> list[Features]:
        """Encode letterboxed images (S, S, 3) uint8 RGB in one run."""
        batch = images.normalise_all(squares)
        return _rows(graph.run({"image": batch}), len(squares))

    def encode_texts(self, graph: Graph, tokens: NDArray[np.int64]) -> list[Features]:
        """Encode tokens (n, L) in one run."""
        return _rows(graph.run({"tokens": tokens}), len(tokens))

    def decode(
        self,
        graph: Graph,
        scenes: Sequence[Features],
        texts: Sequence[Features],
        sizes: Sequence[tuple[int, int]],
        how: Sequence[MaskStep],
    ) -> list[Decoded]:
        """Segment in runs of a few pairs."""
        results: list[Decoded] = []
        for start in range(0, len(scenes), _CHUNK):
            part = slice(start, start + _CHUNK)
            logits = _run_mask_decoder(graph, scenes[part], texts[part])
            upsampled = masks_on_host(
                logits, sizes[part], self._model.input_size, how[part], self._threads
            )
            results += zip(upsampled, logits, how[part], strict=True)
        return results

    def close(self) -> None:
        """Do nothing: it holds nothing."""


def masks_on_host(
    logits: NDArray[np.float32],
    sizes: Sequence[tuple[int, int]],
    input_size: int,
    how: Sequence[MaskStep],
    threads: int | None,
) -> list[masks.UpsampledMask]:
    """Do the mask step of logits (n, h, w) on the CPU; probabilities for all if one wants them."""
    outputs = masks.Output.MASK
    if any(step.probabilities for step in how):
        outputs |= masks.Output.PROBABILITIES
    limits = [step.threshold for step in how]
    return masks.upsample_masks(logits, sizes, input_size, limits, outputs=outputs, threads=threads)


def one_scene(scenes: Sequence[Features]) -> bool:
    """Tell whether all pairs have the same image: the graph broadcasts it, so it is given once."""
    return all(scene is scenes[0] for scene in scenes)


def _run_mask_decoder(
    graph: Graph, scenes: Sequence[Features], texts: Sequence[Features]
) -> NDArray[np.float32]:
    """(n, h, w) float32 logits, writable by nobody but their owner."""
    inputs = _joined(texts) | _joined(scenes[:1] if one_scene(scenes) else scenes)
    logits = graph.run(inputs)["logits"]
    return np.asarray(logits[:, 0], dtype=np.float32)  # (n, 1, h, w) -> (n, h, w)


def _rows(outputs: Mapping[str, NDArray[Any]], count: int) -> list[Features]:
    """Split a batch; copies, so that a cached row does not keep its whole batch alive."""
    if count == 1:
        return [dict(outputs)]
    return [{k: v[i : i + 1].copy() for k, v in outputs.items()} for i in range(count)]


def _joined(rows: Sequence[Features]) -> Features:
    if len(rows) == 1:
        return dict(rows[0])
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
