"""Images, an engine on the small bundle, and what the full graph gives without it."""

import numpy as np
import onnxruntime
import pytest

from cris_deploy import Engine
from cris_deploy.bundle.reading import Bundle, GraphName
from cris_deploy.pixels.image import letterbox, normalise
from cris_deploy.pixels.mask import mask_from_logits
from cris_deploy.words.tokenizer import Tokenizer
from tests.helpers import tiny_bundle as tiny


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = [(48, 80), (90, 40), (17, 31), (64, 64), (1, 1)]
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


@pytest.fixture
def engine(tiny_bundle):
    with Engine(tiny_bundle, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(tiny_bundle):
    """Logits and mask of the full graph, without the engine."""
    bundle = Bundle.open(tiny_bundle)
    session = onnxruntime.InferenceSession(str(bundle.graph(GraphName.FULL)))
    tokenizer = Tokenizer.from_file(bundle.tokenizer, tiny.WORD_LEN)

    def run(image, expression):
        square = normalise(letterbox(image, tiny.SIZE))[None]
        tokens = tokenizer.encode([expression]).tokens
        logits = session.run(None, {"image": square, "tokens": tokens})[0][0, 0]
        return logits, mask_from_logits(logits, *image.shape[:2], tiny.SIZE, 0.35)

    return run
