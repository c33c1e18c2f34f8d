"""Validation: every expression of every object, through the mask step of deployment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from cris_deploy import image as images
from cris_deploy.mask import mask_from_logits
from cris_train.data.dataset import ReferData
from cris_train.metrics import MaskMetrics
from cris_train.model import Cris

# An image's expressions are run together, in parts of this many.
CHUNK = 16


def evaluate(
    model: Cris,
    data: ReferData,
    *,
    threshold: float,
    count: int = 0,
    bf16: bool = False,
    tick: Callable[[], object] = lambda: None,
    observe: Callable[[int, float], object] = lambda sentence, iou: None,
) -> MaskMetrics:
    """Measure a model on a split, at image size.

    Args:
        model: In evaluation mode.
        data: The split.
        threshold: Probability above which a pixel belongs to the mask.
        count: Images to use, from the first; 0 for all.
        bf16: Mixed precision in bfloat16.
        tick: Called after every image.
        observe: Called with every expression's number in the data set and its IoU.
    """
    metrics = MaskMetrics()
    for index in range(min(count, len(data)) if count else len(data)):
        image = data.images[index]
        asked = [
            (item, said, number)
            for item in image.objects
            for said, number in zip(item.expressions, item.sentence_ids, strict=True)
        ]
        pixels = torch.from_numpy(images.normalise(data.square(index)))[None]
        truths = {item.ref_id: image.mask(item) for item in image.objects}
        for start in range(0, len(asked), CHUNK):
            part = asked[start : start + CHUNK]
            tokens = torch.from_numpy(np.stack([data.tokens(said) for _, said, _ in part]))
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(pixels, tokens).float().numpy()[:, 0]
            for (item, _, number), low in zip(part, logits, strict=True):
                mask = mask_from_logits(
                    low, image.height, image.width, data.config.input_size, threshold
                )
                observe(number, metrics.add(mask, truths[item.ref_id]))
        tick()
    return metrics
