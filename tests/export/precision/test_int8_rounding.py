"""Rounding of weights, against float64."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from cris_deploy.bundle.manifest import GraphName
from cris_deploy.machine.cpu import EXACT_LEVELS
from cris_export.precision.int8.calibration import LEVELS, observe
from cris_export.precision.int8.rounding import compensate, round_weight, round_weights
from cris_export.precision.int8.sites import find_sites, find_stage_sites
from tests.helpers.onnx_graphs import graph, node, value

INPUTS, OUTPUTS = 96, 40


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def correlated(rng, rows, mixing):
    """Inputs as layers see them: many channels, few directions, and a mean far from zero."""
    noise = 0.1 * rng.standard_normal((rows, INPUTS))
    return rng.standard_normal((rows, len(mixing))) @ mixing + noise + 0.5


def test_weights_round_to_half_a_step(rng):
    weight = rng.standard_normal((6, 5, 3, 3)).astype(np.float32)
    weight[2] = 0
    rounded = round_weight(weight, 0)
    assert rounded.integers.dtype == np.int8
    error = np.abs(rounded.values - weight)
    assert (error <= rounded.steps[:, None, None, None] * 0.5001).all()
    assert np.abs(rounded.integers).max(axis=(1, 2, 3)).tolist() == [127, 127, 0, 127, 127, 127]


@pytest.mark.parametrize("axis", [0, 1])
def test_compensation_keeps_results_of_unseen_inputs(rng, axis):
    weight = rng.standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
    mixing = rng.standard_normal((12, INPUTS))
    seen, unseen = correlated(rng, 60, mixing), correlated(rng, 500, mixing)
    stored = weight if axis == 1 else np.ascontiguousarray(weight.T)
    nearest, compensated = round_weight(stored, axis), compensate(stored, axis, seen.T @ seen)
    np.testing.assert_array_equal(nearest.steps, compensated.steps)
    assert compensated.integers.dtype == np.int8
    assert compensated.integers.shape == stored.shape
    errors = [
        np.linalg.norm(unseen @ ((r.values if axis == 1 else r.values.T) - weight))
        for r in (nearest, compensated)
    ]
    assert errors[1] < 0.5 * errors[0]  # measured 0.25: fewer samples than inputs, and other ones


def test_inputs_without_correlation_are_rounded_to_the_nearest(rng):
    weight = rng.standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
    for products in (np.zeros((INPUTS, INPUTS)), 3.0 * np.eye(INPUTS)):
        found = compensate(weight, 1, products)
        np.testing.assert_array_equal(found.integers, round_weight(weight, 1).integers)


def test_a_column_of_zeros_stays_zero(rng):
    weight = rng.standard_normal((INPUTS, OUTPUTS)).astype(np.float32)
    weight[:, 7] = 0
    inputs = rng.standard_normal((50, INPUTS))
    assert not compensate(weight, 1, inputs.T @ inputs).integers[:, 7].any()


def two_matrices(rng):
    return graph(
        [
            node("Relu", ["x"], ["a"]),
            node("MatMul", ["a", "w"], ["b"]),
            node("MatMul", ["words", "v"], ["c"]),
            node("Add", ["b", "c"], ["y"]),
        ],
        [value("x", [1, 70, INPUTS]), value("words", [1, 70, INPUTS])],
        [value("y", [1, 70, OUTPUTS])],
        {name: rng.standard_normal((INPUTS, OUTPUTS)).astype(np.float32) for name in ("w", "v")},
    )


def test_matrices_with_observed_products_are_compensated(tmp_path, rng):
    proto = two_matrices(rng)
    path = tmp_path / "float.onnx"
    onnx.save(proto, path)
    mixing = rng.standard_normal((12, INPUTS))
    feed = {name: correlated(rng, 70, mixing)[None].astype(np.float32) for name in ("x", "words")}
    seen = observe(path, [feed, feed], ["a"], "test", products=["words"])
    words = feed["words"][0].astype(np.float64)
    np.testing.assert_allclose(seen["words"].products, 2 * words.T @ words, rtol=1e-6)
    assert seen["a"].products is None
    model = ir.from_proto(proto)
    rounded = round_weights(find_sites(model), seen)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    # "v" reads what comes from outside: it is only stored in int8, and has all 8 bits.
    for name, levels, same in (("w", EXACT_LEVELS, True), ("v", LEVELS, False)):
        nearest = round_weight(weights[name], 1, levels).integers
        assert np.array_equal(rounded[name].integers, nearest) is same
        assert np.abs(rounded[name].integers.astype(int)).max() <= levels


def test_the_text_encoder_keeps_float32_inputs(rng):
    model = ir.from_proto(two_matrices(rng))
    assert [site.whole for site in find_stage_sites(GraphName.MASK_DECODER, model)] == [True, False]
    assert [site.whole for site in find_stage_sites(GraphName.TEXT_ENCODER, model)] == [
        False,
        False,
    ]
