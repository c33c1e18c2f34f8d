"""What an embedder asks of an engine: thresholds, probabilities, warm-up, timings, memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.batcher import Batcher, BatchLimits
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.errors import InputError
from cris_deploy.pixels.mask import mask_from_logits

IMAGE = np.random.default_rng(3).integers(0, 256, (37, 53, 3), np.uint8)


@pytest.fixture
def engine(tiny_bundle: Path) -> Iterator[Engine]:
    with Engine(tiny_bundle, backend="onnxruntime", threads=1) as opened:
        yield opened


@pytest.mark.parametrize("threshold", [0.0, 0.35, np.float32(0.5), 1])
def test_threshold_of_one_call(engine: Engine, threshold: Any) -> None:
    size = engine.info.model.input_size
    for found in (
        engine.segment(IMAGE, "a", threshold=threshold),
        engine.encode_image(IMAGE).segment("a", threshold=threshold),
    ):
        right = mask_from_logits(found.logits, 37, 53, size, float(threshold))
        np.testing.assert_array_equal(found.mask, right)
        assert found.threshold == float(threshold)
        assert found.area == right.sum()
    own = engine.info.model.threshold
    assert engine.segment(IMAGE, "a").threshold == own


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), True, False, "0.5"])
def test_what_is_no_threshold(engine: Engine, bad: Any) -> None:
    with pytest.raises(InputError, match="threshold is"):
        engine.segment(IMAGE, "a", threshold=bad)
    with pytest.raises(InputError, match="probabilities"):
        engine.segment(IMAGE, "a", probabilities=1)  # type: ignore[call-overload]


def test_requests_of_other_thresholds_share_a_batch(engine: Engine) -> None:
    limits = [None, 0.1, 0.6, 0.9]
    with Batcher(engine, BatchLimits(images=1, pairs=8, delay=30.0)) as batcher:
        futures = [batcher.submit(IMAGE, ["a", "b"], threshold=limit) for limit in limits]
        found = [future.result(60) for future in futures]
        assert batcher.counts().pair_runs == 1
    for results, limit in zip(found, limits, strict=True):
        for result, right in zip(
            results, engine.segment(IMAGE, ["a", "b"], threshold=limit), strict=True
        ):
            np.testing.assert_array_equal(result.mask, right.mask)


def test_probabilities_at_image_size(engine: Engine) -> None:
    found = engine.segment(IMAGE, ["a", "b"], probabilities=True)
    for result in found:
        assert result.probabilities is not None
        assert result.probabilities.shape == (37, 53)
        assert result.probabilities.dtype == np.float32
        np.testing.assert_array_equal(result.probabilities > result.threshold, result.mask)
    assert engine.segment(IMAGE, "a").probabilities is None


def test_confidence_is_the_mean_probability_in_the_mask(engine: Engine) -> None:
    exact, coarse = (engine.segment(IMAGE, "a", probabilities=wanted) for wanted in (True, False))
    assert exact.probabilities is not None
    inside = exact.probabilities[exact.mask].clip(0, 1)
    assert exact.confidence == pytest.approx(inside.mean(dtype=np.float64))
    cells = 1 / (1 + np.exp(-coarse.logits.astype(np.float64)))
    assert coarse.confidence == pytest.approx(cells[cells > coarse.threshold].mean())
    assert coarse.threshold < coarse.confidence <= coarse.score
    assert engine.segment(IMAGE, "a", threshold=1).confidence == 0


def test_stages_tell_how_long_they_took(tiny_bundle: Path) -> None:
    runs: list[tuple[GraphName, float, int]] = []
    with Engine(
        tiny_bundle, backend="onnxruntime", on_stage=lambda *run: runs.append(run)
    ) as engine:
        engine.segment(IMAGE, ["a", "b", "a"])
        engine.segment(IMAGE, "a")  # known: the decoder alone
    names = [(stage, rows) for stage, _, rows in runs]
    assert names == [
        (GraphName.IMAGE_ENCODER, 1),
        (GraphName.TEXT_ENCODER, 2),
        (GraphName.MASK_DECODER, 3),
        (GraphName.MASK_DECODER, 1),
    ]
    assert all(seconds > 0 for _, seconds, _ in runs)


def test_warm_up_runs_every_shape_and_leaves_nothing(tiny_bundle: Path) -> None:
    runs: list[tuple[GraphName, int]] = []
    with Engine(
        tiny_bundle,
        backend="onnxruntime",
        on_stage=lambda stage, _, rows: runs.append((stage, rows)),
    ) as engine:
        engine.warm_up(batch_sizes=(1, 4), expressions=(3,))
        assert runs == [
            *((stage, rows) for rows in (1, 4) for stage in _in_order()),
            (GraphName.IMAGE_ENCODER, 1),
            (GraphName.TEXT_ENCODER, 3),
            (GraphName.MASK_DECODER, 3),
        ]
        assert engine.cache_info().images.kept == engine.cache_info().expressions.kept == 0
        for bad in ({"batch_sizes": (0,)}, {"expressions": (1.5,)}, {"expressions": (10**6,)}):
            with pytest.raises(InputError, match=next(iter(bad))):
                engine.warm_up(**bad)  # type: ignore[arg-type]


def _in_order() -> tuple[GraphName, ...]:
    return GraphName.IMAGE_ENCODER, GraphName.TEXT_ENCODER, GraphName.MASK_DECODER


def test_cache_info(engine: Engine) -> None:
    engine.segment(IMAGE, ["a", "b"])
    engine.segment(IMAGE, ["a", "c"])
    info = engine.cache_info()
    assert (info.images.kept, info.images.hits, info.images.misses) == (1, 1, 1)
    assert (info.expressions.kept, info.expressions.hits, info.expressions.misses) == (3, 1, 3)
    assert info.images.most == 16


def test_memory(engine: Engine) -> None:
    before = engine.memory()
    assert before.features == 0
    assert 0 < before.process <= before.peak
    assert before.device_free is None
    scene = engine.encode_image(IMAGE)
    expected = sum(tensor.nbytes for tensor in scene.encoded.features.values())
    assert engine.memory().features == expected > 0
