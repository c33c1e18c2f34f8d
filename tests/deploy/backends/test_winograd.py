"""Minimal filtering is convolution, and is put where it is worth its transforms."""

import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.bundle.manifest import Precision
from cris_deploy.execution.backends import Device, winograd
from cris_deploy.execution.backends.openvino import computes, core

ov = pytest.importorskip("openvino", reason="OpenVINO is not installed")
op = pytest.importorskip("openvino.opset13")

ONE = [1, 1]


def layer(inputs=256, outputs=256, height=26, width=26, *, taps=3, weights=np.float32, **options):
    """A model of one convolution with random weights."""
    rng = np.random.default_rng(inputs + outputs + height)
    values = rng.standard_normal((outputs, inputs, taps, taps)) / np.sqrt(inputs * taps * taps)
    stored = op.constant(values.astype(weights))
    if weights is np.float16:
        stored = op.convert(stored, "f32")
    pixels = op.parameter([1, inputs, height, width], np.float32)
    settings = {"strides": ONE, "pads_begin": ONE, "pads_end": ONE, "dilations": ONE, **options}
    return ov.Model([op.convolution(pixels, stored, **settings)], [pixels])


def run(model, pixels):
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(pixels)[0]


def kinds(model):
    return [node.get_type_name() for node in model.get_ordered_ops()]


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 13, 26, 27])
def test_one_dimension_is_a_filter_with_zeros_at_the_ends(side):
    rng = np.random.default_rng(side)
    taps, pixels = rng.standard_normal(3), rng.standard_normal(side)
    maps = winograd.transforms(side)
    products = (maps.filters @ taps)[:, None] * (maps.forward @ pixels)
    plain = np.convolve(pixels, taps[::-1])[1:-1]
    np.testing.assert_allclose(np.tensordot(maps.inverse, products, 2), plain, atol=1e-13)


@pytest.mark.parametrize(
    ("inputs", "outputs", "height", "width", "weights"),
    [
        (256, 256, 26, 26, np.float32),
        (300, 256, 27, 31, np.float32),
        (256, 320, 40, 20, np.float32),
        (256, 256, 25, 26, np.float16),
    ],
)
def test_a_layer_gives_what_it_gave(inputs, outputs, height, width, weights):
    model = layer(inputs, outputs, height, width, weights=weights)
    shape = (1, inputs, height, width)
    pixels = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    plain = run(model, pixels)
    assert winograd.rewrite(model) == 1
    assert "Convolution" not in kinds(model)
    # 2e-5 to 3e-5 when written; the plain layer is 1e-5 from float64's.
    np.testing.assert_allclose(run(model, pixels), plain, atol=1e-4 * plain.std())


@pytest.mark.parametrize(
    "model",
    [
        layer(inputs=64),
        layer(outputs=64),
        layer(height=13, width=13),
        layer(strides=[2, 2]),
        layer(dilations=[2, 2]),
        layer(pads_begin=[0, 0]),
        layer(pads_end=[2, 2]),
        layer(taps=1),
        layer(taps=5),
    ],
)
def test_other_layers_stay(model):
    before = kinds(model)
    assert winograd.rewrite(model) == 0
    assert kinds(model) == before


def test_weights_that_are_computed_stay():
    pixels = op.parameter([1, 256, 26, 26], np.float32)
    weights = op.parameter([256, 256, 3, 3], np.float32)
    result = op.convolution(pixels, weights, ONE, ONE, ONE, ONE)
    assert winograd.rewrite(ov.Model([result], [pixels, weights])) == 0


@pytest.mark.parametrize(("precision", "graphs"), [("fp32", 3), ("bf16", 0)])
def test_an_engine_has_it_in_float32_only(tiny_bundle, monkeypatch, precision, graphs):
    if precision not in computes(Precision.FP32, Device.CPU):
        pytest.skip("this processor has no bfloat16")
    rewritten = []
    monkeypatch.setattr(winograd, "rewrite", rewritten.append)
    with Engine(tiny_bundle, backend="openvino", precision=precision) as engine:
        engine.segment(np.zeros((20, 30, 3), np.uint8), "the man in red")
    assert len(rewritten) == graphs
