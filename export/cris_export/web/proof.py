"""The page's graphs against FP32 PyTorch's answers on the samples of their bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cris_deploy.bundle.manifest import DEFAULT_MIN_IOU, STAGES, GraphName
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError
from cris_deploy.pixels.decoding import decode
from cris_deploy.pixels.image import letterbox, normalise
from cris_deploy.pixels.mask import mask_from_logits, overlap
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.errors import ParityError


@dataclass(frozen=True, slots=True)
class WebParity:
    """Mean and worst mask IoU, and the largest absolute error of a logit, over the samples."""

    samples: int
    mean_iou: float
    worst_iou: float
    max_logit_error: float


def prove(bundle: Bundle, folder: Path) -> WebParity:
    """Run the stages in `folder` in ONNX Runtime on the CPU.

    Raises:
        ParityError: the mean mask IoU is below what the bundle was held to.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"a page is proved in ONNX Runtime: pip install 'cris-deploy[cpu]' ({error})"
        ) from error
    sessions = {
        stage: onnxruntime.InferenceSession(
            folder / f"{stage}.onnx", providers=["CPUExecutionProvider"]
        )
        for stage in STAGES
    }
    manifest = bundle.manifest
    facts = manifest.model
    tokenizer = Tokenizer.from_file(bundle.tokenizer, facts.word_len)
    ious, errors = [], [0.0]
    for sample in manifest.samples:
        height, width = sample.height, sample.width
        rgb = decode(bundle.sample_image(sample))
        image = normalise(letterbox(rgb, facts.input_size))[None]
        tokens = tokenizer.encode([sample.expression]).tokens
        logits = _run(sessions, image, tokens)
        expected = bundle.sample_logits(sample)
        errors.append(float(np.abs(logits - expected).max()))
        found, due = (
            mask_from_logits(values, height, width, facts.input_size, facts.threshold)
            for values in (logits, expected)
        )
        ious.append(overlap(found, due).iou)
    parity = WebParity(
        len(ious), float(np.mean(ious or [1.0])), min(ious, default=1.0), max(errors)
    )
    least = DEFAULT_MIN_IOU if manifest.parity is None else manifest.parity.min_iou
    if parity.mean_iou < least:
        raise ParityError(
            f"the page's graphs have mean mask IoU {parity.mean_iou:.4f} with FP32 PyTorch, budget "
            f"{least:g}: take --weights fp32"
        )
    return parity


def _run(sessions: dict[GraphName, Any], image: Any, tokens: Any) -> Any:
    """Logits (h, w) float32 of one image (1, 3, S, S) and its tokens (1, word_len)."""
    tensors: dict[str, Any] = {"image": image, "tokens": tokens}
    for stage in STAGES:
        session = sessions[stage]
        names = [output.name for output in session.get_outputs()]
        feeds = {entry.name: tensors[entry.name] for entry in session.get_inputs()}
        tensors.update(zip(names, session.run(names, feeds), strict=True))
    return tensors["logits"][0, 0].astype(np.float32)
