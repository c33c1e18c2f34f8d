"""Keys to sign bundles of tests with, and a picture to ask them about."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cris_deploy import Engine

PICTURE = cv2.resize(np.random.default_rng(5).integers(0, 256, (5, 7, 3), np.uint8), (70, 45))
WORDS = "dog"


@dataclass(frozen=True)
class Keys:
    """Files of our pair of keys, and of a stranger's."""

    secret: Path
    public: Path
    other_secret: Path
    other: Path


def segmented(engine: Engine) -> NDArray[np.bool_]:
    """Give the mask of `PICTURE`."""
    return engine.segment(PICTURE, WORDS).mask
