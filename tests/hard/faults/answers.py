"""Masks as a digest: what a fault must not change."""

import hashlib
from collections.abc import Sequence

import numpy as np

from cris_deploy import Engine, Segmentation

WORDS = ("a cat", "the dog", "left")


def picture() -> np.ndarray:
    """A random picture, (45, 70, 3) uint8."""
    return np.random.default_rng(3).integers(0, 256, (45, 70, 3), np.uint8)


def digest(engine: Engine) -> str:
    """Ask for a few masks and give the hash of their shapes, bits and logits."""
    return digest_of(engine.segment(picture(), list(WORDS)))


def digest_of(results: Sequence[Segmentation]) -> str:
    """Give the hash of masks that are there."""
    found = hashlib.sha256()
    for result in results:
        found.update(str(result.mask.shape).encode())
        found.update(np.packbits(result.mask).tobytes())
        found.update(result.logits.tobytes())
    return found.hexdigest()
