"""An int8 graph computed in float32: the rounding is gone, the weights are the stored ones."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cris_deploy.execution.backends import openvino as backend
from cris_deploy.execution.backends import unquantised

CHANNELS, SIDE, STEP = 4, 6, np.float32(0.5)


@pytest.fixture(scope="module")
def graph():
    """A convolution and a product of an image that is rounded to halves before each."""
    rng = np.random.default_rng(0)
    kernel = rng.integers(-64, 65, (CHANNELS, CHANNELS, 3, 3), np.int8)
    matrix = rng.integers(-64, 65, (SIDE, SIDE), np.int8)
    constants = {
        "step": STEP,
        "zero": np.int8(0),
        "kernel": kernel,
        "kernel_steps": np.linspace(0.01, 0.04, CHANNELS, dtype=np.float32),
        "kernel_zeros": np.zeros(CHANNELS, np.int8),
        "matrix": matrix,
        "matrix_steps": np.linspace(0.01, 0.04, SIDE, dtype=np.float32),
        "matrix_zeros": np.zeros(SIDE, np.int8),
        "twice": np.float32(2),
    }

    def pair(value, number):
        return [
            helper.make_node("QuantizeLinear", [value, "step", "zero"], [f"q{number}"]),
            helper.make_node("DequantizeLinear", [f"q{number}", "step", "zero"], [f"d{number}"]),
        ]

    nodes = [
        *pair("image", 0),
        helper.make_node(
            "DequantizeLinear", ["kernel", "kernel_steps", "kernel_zeros"], ["w0"], axis=0
        ),
        helper.make_node("Conv", ["d0", "w0"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["features", "twice"], ["scaled"]),  # the model's own, which stays
        *pair("scaled", 1),
        helper.make_node(
            "DequantizeLinear", ["matrix", "matrix_steps", "matrix_zeros"], ["w1"], axis=1
        ),
        helper.make_node("MatMul", ["d1", "w1"], ["logits"]),
    ]
    shape = (1, CHANNELS, SIDE, SIDE)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "rounded",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    weights = kernel * constants["kernel_steps"][:, None, None, None]
    return model, weights, matrix * constants["matrix_steps"]


def expected(image, kernel, matrix):
    padded = np.pad(image[0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return 2 * np.einsum("oikl,iyxkl->oyx", kernel, windows)[None] @ matrix


def test_the_results_are_those_without_rounding(graph):
    pytest.importorskip("openvino")
    core = backend.core()  # one for the process: the end of a second one costs it its signals
    model, kernel, matrix = graph
    image = np.random.default_rng(1).standard_normal((1, CHANNELS, SIDE, SIDE)).astype(np.float32)
    wanted = expected(image, kernel, matrix)
    logits = []
    for rounded in (True, False):
        read = core.read_model(model.SerializeToString())
        if not rounded:
            assert unquantised.rewrite(read) == 2
            assert unquantised.rewrite(read) == 0
        compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        logits.append(compiled(image)[0])
    # float32 of a sum of 24 products; rounding to halves, on the other hand, shows.
    np.testing.assert_allclose(logits[1], wanted, atol=1e-4 * np.abs(wanted).max())
    assert np.abs(logits[0] - wanted).max() > 0.01 * np.abs(wanted).max()
