from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_deploy import Engine
from tests.helpers.server import Server, serving

LIMITS = (
    *("--max-body", "200000", "--max-pixels", "1000000", "--max-expressions", "8"),
    *("--read-timeout", "1", "--kept-images", "3", "--no-self-test"),
)


@pytest.fixture(scope="package")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    with serving(tiny_bundle, tmp_path_factory.mktemp("server") / "log", *LIMITS) as running:
        yield running


@pytest.fixture(scope="package")
def engine(tiny_bundle: Path) -> Iterator[Engine]:
    with Engine(tiny_bundle, backend="onnxruntime", threads=1) as opened:
        yield opened


@pytest.fixture(scope="package")
def picture() -> bytes:
    """A PNG of 40 x 30."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    done, data = cv2.imencode(".png", pixels)
    assert done
    return data.tobytes()
