"""Samples: images and expressions on which an export is proved, with the FP32 model's answers."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cris_deploy import documents
from cris_deploy.bundle.manifest import Sample
from cris_deploy.errors import CrisError, InputError
from cris_deploy.pixels import image as images
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.graph.stages import build_stages
from cris_export.graph.trace import IMAGE_ENCODER, TEXT_ENCODER, Interface
from cris_train.errors import CheckpointError
from cris_train.model import Cris

PACKAGED = Path(__file__).parent / "samples_data" / "samples.jsonl"
# Samples that carry the stages' outputs, too: at full size 3.5 MB per image, 37 kB per expression.
SCENES = 2
EXPRESSIONS = 4  # per scene

_LINE = 'write lines such as {"image": "photo.jpg", "expression": "the man in red"}'

Features: TypeAlias = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class SampleSource:
    """One pair to prove an export on: an image file and a referring expression."""

    image: Path
    expression: str


@dataclass(frozen=True)
class _Line:
    image: str
    expression: str


@dataclass(frozen=True)
class Answer:
    """What FP32 PyTorch says about a sample: the truth that every exported form is held to.

    Attributes:
        source: The pair.
        height: Of the image, pixels.
        width: Of the image, pixels.
        logits: (S/4, S/4) float32, of the unmodified model.
        scene: Outputs of the image encoder by name, first axis 1; None for all but a few samples.
        text: Outputs of the text encoder by name, first axis 1; None for all but a few samples.
    """

    source: SampleSource
    height: int
    width: int
    logits: NDArray[np.float32]
    scene: Features | None
    text: Features | None


def read_samples(path: Path | None, flag: str = "--samples") -> list[SampleSource]:
    """Read a JSONL of `{"image": ..., "expression": ...}`, image paths relative to the file.

    Args:
        path: The file; None for the two photographs and six expressions that come packaged.
        flag: What named the file, for errors.

    Raises:
        InputError: no such file, nothing in it, or a line that is not such an object (named).
    """
    path = path or PACKAGED
    try:
        # A line ends with its newline; Unicode's other line ends stand in JSON as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {path}: cannot be read as a JSONL file: {error}") from error
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{flag} {path}, line {number}"
        entry = documents.read(_Line, line, where, remedy=_LINE, error=InputError)
        samples.append(SampleSource(path.parent / entry.image, entry.expression))
    if not samples:
        raise InputError(f"{flag} {path}: the file names no sample")
    return samples


def answer_samples(
    model: Cris, samples: Sequence[SampleSource], tokenizer: Tokenizer
) -> list[Answer]:
    """Run the unmodified FP32 model on the samples, one by one, and its stages on the first few.

    Raises:
        InputError: an image or expression is unusable (the message names the sample).
        CheckpointError: the model gives NaN or infinity.
    """
    size = model.config.input_size
    stages = build_stages(model)
    scenes: dict[Path, Features] = {}
    asked: Counter[Path] = Counter()
    answers = []
    for sample in samples:
        try:
            rgb = images.decode(sample.image)
            encoded = tokenizer.encode([sample.expression]).tokens
        except CrisError as error:
            raise InputError(f"--samples: {sample.image}: {error}") from error
        pixels = torch.from_numpy(images.normalise(images.letterbox(rgb, size)))[None]
        tokens = torch.from_numpy(encoded)
        scene = text = None
        with torch.inference_mode():
            output = model(pixels, tokens)
            if sample.image not in scenes and len(scenes) < SCENES:
                scenes[sample.image] = _named(IMAGE_ENCODER, stages.image_encoder(pixels))
            if sample.image in scenes and asked[sample.image] < EXPRESSIONS:
                asked[sample.image] += 1
                scene = scenes[sample.image]
                text = _named(TEXT_ENCODER, stages.text_encoder(tokens))
        logits: NDArray[np.float32] = output[0, 0].numpy().astype(np.float32)
        if not np.isfinite(logits).all():
            raise CheckpointError(
                f"FP32 PyTorch itself gives NaN or infinity for {sample.expression!r} on "
                f"{sample.image}: the checkpoint's weights are unusable, train or download it again"
            )
        answers.append(Answer(sample, rgb.shape[0], rgb.shape[1], logits, scene, text))
    return answers


def write_samples(folder: Path, answers: Sequence[Answer]) -> tuple[Sample, ...]:
    """Copy each image once, the FP32 logits of each pair, and the features of those that have any.

    Images keep their names, as far as every system can hold them, so that reports can be read.

    Args:
        folder: The bundle's; its samples go to `samples/`, which is new.
        answers: What FP32 PyTorch says.

    Returns:
        The manifest's records, in the order of the answers.
    """
    (folder / "samples").mkdir()
    copies: dict[Path, str] = {}
    scenes: dict[Path, str] = {}
    written = []
    for index, answer in enumerate(answers):
        source = answer.source.image
        if source not in copies:
            name = re.sub(r"[^A-Za-z0-9._-]", "_", source.name)[-80:]
            copies[source] = f"samples/{len(copies)}-{name}"
            shutil.copyfile(source, folder / copies[source])
        logits = f"samples/logits{index}.npy"
        np.save(folder / logits, answer.logits)
        text = None
        if answer.scene is not None and answer.text is not None:
            if source not in scenes:
                scenes[source] = f"samples/scene{len(scenes)}.npz"
                np.savez_compressed(folder / scenes[source], allow_pickle=False, **answer.scene)
            text = f"samples/text{index}.npz"
            np.savez_compressed(folder / text, allow_pickle=False, **answer.text)
        written.append(
            Sample(
                copies[source],
                answer.source.expression,
                logits,
                answer.height,
                answer.width,
                scenes.get(source) if text is not None else None,
                text,
            )
        )
    return tuple(written)


def _named(spec: Interface, outputs: tuple[Tensor, ...]) -> Features:
    return {name: output.numpy() for name, output in zip(spec.outputs, outputs, strict=True)}
