"""The parity gate: an export is handed over only if it gives the checkpoint's masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cris_deploy import Engine
from cris_deploy import image as images
from cris_deploy.backends import load_graphs
from cris_deploy.bundle import Bundle, GraphName
from cris_deploy.mask import mask_from_logits
from cris_deploy.text import Tokenizer
from cris_export.samples import Answer


@dataclass(frozen=True)
class SampleParity:
    """One sample, exported graph against FP32 PyTorch.

    Attributes:
        expression: The referring expression.
        image: File name of the image.
        iou: Of the two masks at image size; 1 if both are empty. The worse of both routes.
        logit_error: Largest absolute difference of the logits, over both routes.
    """

    expression: str
    image: str
    iou: float
    logit_error: float


@dataclass(frozen=True)
class ParityReport:
    """All samples against a budget."""

    samples: tuple[SampleParity, ...]
    min_iou: float

    @property
    def mean_iou(self) -> float:
        """Mean mask IoU; what the budget is held against."""
        return float(np.mean([sample.iou for sample in self.samples]))

    @property
    def worst(self) -> SampleParity:
        """The sample with the lowest IoU."""
        return min(self.samples, key=lambda sample: sample.iou)

    @property
    def max_logit_error(self) -> float:
        """Largest absolute difference of any logit."""
        return max(sample.logit_error for sample in self.samples)

    @property
    def passed(self) -> bool:
        """True if the mean IoU meets the budget; NaN does not."""
        return self.mean_iou >= self.min_iou


def verify(bundle: Path, answers: Sequence[Answer], min_iou: float) -> ParityReport:
    """Run a bundle on the samples as production would, by its stages and by its full graph.

    Args:
        bundle: A complete bundle; its hashes are checked on loading.
        answers: What FP32 PyTorch said.
        min_iou: The budget for the mean mask IoU.
    """
    with Engine(bundle, cache=False, device="cpu") as engine:
        staged = [engine.segment(a.source.image, a.source.expression).logits for a in answers]
    opened = Bundle.open(bundle, verify=False)  # the engine has checked the hashes
    whole = _full_graph(opened, answers)
    model = opened.manifest.model
    samples = []
    for answer, *routes in zip(answers, staged, whole, strict=True):
        masks = [
            mask_from_logits(logits, answer.height, answer.width, model.input_size, model.threshold)
            for logits in routes
        ]
        samples.append(
            SampleParity(
                expression=answer.source.expression,
                image=answer.source.image.name,
                iou=min(mask_iou(mask, answer.mask) for mask in masks),
                logit_error=max(float(np.abs(r - answer.logits).max()) for r in routes),
            )
        )
    return ParityReport(tuple(samples), min_iou)


def mask_iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Intersection over union of two (H, W) bool masks; 1 if both are empty."""
    union = int(np.logical_or(first, second).sum())
    return int(np.logical_and(first, second).sum()) / union if union else 1.0


def _full_graph(bundle: Bundle, answers: Sequence[Answer]) -> list[NDArray[np.float32]]:
    """Logits (S/4, S/4) of every sample by the full graph, two samples at a time."""
    model = bundle.manifest.model
    tokenizer = Tokenizer.from_file(bundle.tokenizer, model.word_len)
    graphs, _ = load_graphs(bundle, [GraphName.FULL], device="cpu")
    graph = graphs[GraphName.FULL]
    logits: list[NDArray[np.float32]] = []
    for start in range(0, len(answers), 2):
        chunk = answers[start : start + 2]
        pixels = [
            images.normalise(images.letterbox(images.decode(a.source.image), model.input_size))
            for a in chunk
        ]
        tokens = tokenizer.encode([a.source.expression for a in chunk]).tokens
        output = graph.run({"image": np.stack(pixels), "tokens": tokens})["logits"]
        logits.extend(output[:, 0].astype(np.float32))
    return logits
