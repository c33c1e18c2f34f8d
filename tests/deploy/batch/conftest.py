"""pyarrow comes with Ray, which has an environment of its own: its packages are seen from here."""

import site
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_deploy import Engine
from tests.helpers.ray_app import ROOT

for folder in ROOT.glob(".venv-ray/lib/python*/site-packages"):
    site.addsitedir(str(folder))


@pytest.fixture(scope="package")
def engine(tiny_bundle: Path) -> Iterator[Engine]:
    with Engine(tiny_bundle, backend="onnxruntime", threads=1) as opened:
        yield opened


@pytest.fixture(scope="package")
def png() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()
