"""What a server runs before it is ready: some of the bundle's samples."""

from typing import Final

import numpy as np

from cris_deploy.bundle.reading import Bundle
from cris_deploy.engine import Engine
from cris_deploy.errors import BundleError
from cris_deploy.pixels.mask import mask_from_logits, overlap

_TESTED: Final = 4
"""Samples of the bundle that are run; `cris-export check` runs all."""


def self_test(engine: Engine, bundle: Bundle) -> None:
    """Run some of the bundle's samples, and hold their masks against FP32 PyTorch's.

    Raises BundleError if the mean mask IoU is below what the bundle was exported with.
    """
    manifest = bundle.manifest
    model = manifest.model
    ious = []
    for sample in manifest.samples[:_TESTED]:
        found = engine.segment(bundle.sample_image(sample), sample.expression)
        height, width = found.mask.shape
        expected = mask_from_logits(
            bundle.sample_logits(sample), height, width, model.input_size, model.threshold
        )
        ious.append(overlap(found.mask, expected).iou)
    least = None if manifest.parity is None else manifest.parity.min_iou
    if ious and least is not None and np.mean(ious) < least:
        raise BundleError(
            f"bundle {bundle.path} gives other masks here than FP32 PyTorch: mean IoU "
            f"{np.mean(ious):.4f} on {len(ious)} samples, budget {least:g}: look at cris-export "
            "check"
        )
