"""Samples: images and expressions on which an export is proved, with the FP32 model's answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cris_deploy import image as images
from cris_deploy.errors import CrisError, InputError
from cris_deploy.mask import mask_from_logits
from cris_deploy.text import Tokenizer
from cris_train.model import Cris

PACKAGED = Path(__file__).parent / "samples_data" / "samples.jsonl"


@dataclass(frozen=True)
class SampleSource:
    """One pair to prove an export on: an image file and a referring expression."""

    image: Path
    expression: str


@dataclass(frozen=True)
class Answer:
    """What FP32 PyTorch says about a sample: the truth that every exported form is held to.

    Attributes:
        source: The pair.
        height: Of the image, pixels.
        width: Of the image, pixels.
        logits: (S/4, S/4) float32.
        mask: (height, width) bool.
    """

    source: SampleSource
    height: int
    width: int
    logits: NDArray[np.float32]
    mask: NDArray[np.bool_]


def read_samples(path: Path | None) -> list[SampleSource]:
    """Read a JSONL of `{"image": ..., "expression": ...}`, image paths relative to the file.

    Args:
        path: The file; None for the two photographs and six expressions that come packaged.

    Raises:
        InputError: no such file, nothing in it, or a line that is not such an object (named).
    """
    path = path or PACKAGED
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--samples {path}: cannot be read as a JSONL file: {error}") from error
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            image, expression = entry["image"], entry["expression"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"--samples {path}, line {number}: expected "
                f'{{"image": "photo.jpg", "expression": "the man in red"}}'
            ) from error
        if not isinstance(image, str) or not isinstance(expression, str):
            raise InputError(f"--samples {path}, line {number}: both values have to be strings")
        samples.append(SampleSource(path.parent / image, expression))
    if not samples:
        raise InputError(f"--samples {path}: the file names no sample")
    return samples


def answer_samples(
    model: Cris, samples: Sequence[SampleSource], tokenizer: Tokenizer, threshold: float
) -> list[Answer]:
    """Run the unmodified FP32 model on the samples, one by one.

    Raises:
        InputError: an image or expression is unusable (the message names the sample).
    """
    size = model.config.input_size
    answers = []
    for sample in samples:
        try:
            rgb = images.decode(sample.image)
            tokens = tokenizer.encode([sample.expression]).tokens
        except CrisError as error:
            raise InputError(f"--samples: {sample.image}: {error}") from error
        pixels = images.normalise(images.letterbox(rgb, size))
        with torch.inference_mode():
            output = model(torch.from_numpy(pixels)[None], torch.from_numpy(tokens))
        logits: NDArray[np.float32] = output[0, 0].numpy().astype(np.float32)
        height, width = rgb.shape[:2]
        mask = mask_from_logits(logits, height, width, size, threshold)
        answers.append(Answer(sample, height, width, logits, mask))
    return answers
