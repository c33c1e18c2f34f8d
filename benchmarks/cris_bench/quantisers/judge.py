"""What int8 bundles are worth beside the float32 one: masks, logits, time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cris_bench.scopes.inputs import random_image, random_tokens
from cris_bench.scopes.timing import Timing, interleave
from cris_deploy import Engine
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.pixels import image as images
from cris_deploy.pixels.mask import overlap
from cris_export.proof.samples import read_samples
from cris_train.data.dataset import read_picture
from cris_train.data.splits import open_splits

# Threads of ONNX Runtime and of OpenMP spin for some milliseconds after their work is done.
_PAUSE: Final = 0.01
_DRAWS: Final = 2000


@dataclass(frozen=True)
class Question:
    """A picture, expressions about it, and what they mean where that is known.

    Attributes:
        read: Gives the picture, (H, W, 3) uint8 RGB.
        expressions: Some.
        truths: A mask (H, W) bool for each; empty if nobody knows.
    """

    read: Callable[[], images.Pixels]
    expressions: tuple[str, ...]
    truths: tuple[NDArray[np.bool_], ...] = ()


@dataclass(frozen=True)
class Answers:
    """What an engine said, expression by expression.

    Attributes:
        logits: (h, w) float32 of each.
        masks: (H, W) bool of each.
        ious: With the truth; empty without one.
    """

    logits: tuple[NDArray[np.float32], ...]
    masks: tuple[NDArray[np.bool_], ...]
    ious: NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure, and where it lies with 95% (bootstrap over expressions, or over rounds)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Accuracy:
    """An int8 engine beside float32 PyTorch's stand-in, the float32 bundle.

    Attributes:
        worst_correlation: Of logits, over expressions.
        mean_correlation: The same.
        mask_iou: Mean IoU of its masks with float32's.
        mean_iou: With the truth, in percent; None without one.
        difference: Of that from float32's, in points; None without one.
    """

    worst_correlation: float
    mean_correlation: float
    mask_iou: float
    mean_iou: float | None
    difference: Interval | None


def questions_of_data(data: Path, split: str, limit: int) -> list[Question]:
    """The first pictures of a data set, until there are `limit` expressions; 0 for all."""
    asked: list[Question] = []
    for image in open_splits(data)[split]:
        said = [(text, image.mask(item)) for item in image.objects for text in item.expressions]
        asked.append(
            Question(
                lambda image=image: read_picture(image),  # type: ignore[misc]
                tuple(text for text, _ in said),
                tuple(mask for _, mask in said),
            )
        )
        if limit and sum(len(one.expressions) for one in asked) >= limit:
            break
    return asked


def questions_of_pairs(path: Path) -> list[Question]:
    """The pairs of a JSONL, whose truth nobody knows."""
    return [
        Question(lambda pair=pair: images.decode(pair.image), (pair.expression,))  # type: ignore[misc]
        for pair in read_samples(path, "--pairs")
    ]


def ask(engine: Engine, questions: Sequence[Question]) -> Answers:
    """Put all questions to an engine."""
    logits, masks, ious = [], [], []
    for question in questions:
        found = engine.segment(question.read(), list(question.expressions))
        logits += [one.logits for one in found]
        masks += [one.mask for one in found]
        if question.truths:
            ious += [
                overlap(one.mask, truth).iou
                for one, truth in zip(found, question.truths, strict=True)
            ]
    return Answers(tuple(logits), tuple(masks), np.array(ious))


def compare(exact: Answers, found: Answers, seed: int = 0) -> Accuracy:
    """Hold answers against float32's."""
    correlations = [
        float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
        for a, b in zip(exact.logits, found.logits, strict=True)
    ]
    same = [overlap(a, b).iou for a, b in zip(exact.masks, found.masks, strict=True)]
    known = bool(exact.ious.size)
    return Accuracy(
        worst_correlation=min(correlations),
        mean_correlation=float(np.mean(correlations)),
        mask_iou=float(np.mean(same)),
        mean_iou=100 * float(found.ious.mean()) if known else None,
        difference=bootstrap(100 * (found.ious - exact.ious), np.mean, seed) if known else None,
    )


def bootstrap(
    values: NDArray[np.float64], statistic: Callable[..., Any], seed: int = 0
) -> Interval:
    """A statistic and its 95% percentile interval."""
    random = np.random.default_rng(seed)
    drawn = random.choice(values, (_DRAWS, len(values)))
    low, high = np.percentile(statistic(drawn, axis=1), (2.5, 97.5))
    return Interval(float(statistic(values)), float(low), float(high))


def race(
    engines: Mapping[str, Engine], warmup: int, rounds: int, tick: Callable[[], object]
) -> list[Timing]:
    """Time the networks alone, image and tokens to logits, in interleaved rounds."""
    model = next(iter(engines.values())).info.model
    image = random_image(1, model.input_size)
    tokens = random_tokens(1, model.word_len, 1000)

    def network(engine: Engine) -> Callable[[], object]:
        stages = engine.pipeline.stages

        def run() -> object:
            features = stages[GraphName.IMAGE_ENCODER].run({"image": image})
            text = stages[GraphName.TEXT_ENCODER].run({"tokens": tokens})
            return stages[GraphName.MASK_DECODER].run({**features, **text})

        return run

    return interleave(
        {name: network(engine) for name, engine in engines.items()},
        warmup=warmup,
        iterations=rounds,
        tick=tick,
        pause=_PAUSE,
    )


def speedups(timings: Sequence[Timing], baseline: str, seed: int = 0) -> Iterator[Interval]:
    """How many times faster than the baseline each is: median ratio within a round."""
    slow = next(np.array(one.seconds) for one in timings if one.name == baseline)
    for timing in timings:
        yield bootstrap(slow / np.array(timing.seconds), np.median, seed)
