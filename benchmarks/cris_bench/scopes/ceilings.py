"""What a machine is capable of: the rate of large products, and of a large copy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cris_bench.contestants.ours import Way
from cris_bench.place import Place
from cris_bench.record.schema import Ceiling
from cris_deploy.execution.backends import BackendName, Compute, status

SIDE: Final = 2048
COPY_BYTES: Final = 1 << 28
_RUNS: Final = 12
_PIXELS: Final = 52
_TORCH: Final = {
    Compute.FP32: torch.float32,
    Compute.BF16: torch.bfloat16,
    Compute.FP16: torch.float16,
}


def measure_ceilings(
    ways: Iterable[Way], threads: int | None, *, side: int = SIDE, copy_bytes: int = COPY_BYTES
) -> tuple[Ceiling, ...]:
    """Measure for every arithmetic that is in use; the best of a few runs counts.

    Args:
        ways: What is in use.
        threads: CPU threads; None for all.
        side: Of the square matrices.
        copy_bytes: Size of the copied block.
    """
    found: dict[tuple[Place, Compute], BackendName] = {}
    for way in ways:
        # A mixed arithmetic has its products in int8.
        key = way.place, Compute.INT8 if way.compute is Compute.INT8_BF16 else way.compute
        # OpenVINO's are the faster ones, where there is a choice.
        if key not in found or way.backend is BackendName.OPENVINO:
            found[key] = way.backend
    copies = {place: _copy_rate(place, copy_bytes) for place in {key[0] for key in found}}
    return tuple(
        Ceiling(
            str(place),
            compute.value,
            max(
                work.operations / _best(work.run, place)
                for work in _works(place, compute, backend, threads, side)
            ),
            copies[place],
        )
        for (place, compute), backend in found.items()
    )


class _Work(NamedTuple):
    """So many operations (2 x multiply-adds), and what does them."""

    operations: int
    run: Callable[[], object]


def _works(
    place: Place, compute: Compute, backend: BackendName, threads: int | None, side: int
) -> Iterator[_Work]:
    if compute is not Compute.INT8:
        yield _Work(2 * side**3, _torch_product(place, compute, side))
    elif place.on_gpu:
        yield _Work(2 * side**3, _torch_int8_product(place, side))
    # OpenVINO may be there without it.
    elif place.device in status(BackendName.ONNXRUNTIME).devices:
        yield _Work(2 * side**3, _onnxruntime_int8_product(threads, side))
    if backend is BackendName.OPENVINO:
        yield _openvino_convolution(compute, threads, side // 4)


def _torch_product(place: Place, compute: Compute, side: int) -> Callable[[], object]:
    first, second = (torch.randn(side, side).to(str(place), _TORCH[compute]) for _ in range(2))
    return lambda: first @ second


def _torch_int8_product(place: Place, side: int) -> Callable[[], object]:
    left, right = (
        torch.randint(-127, 127, (side, side), dtype=torch.int8, device=str(place))
        for _ in range(2)
    )
    return lambda: torch._int_mm(left, right)


def _onnxruntime_int8_product(threads: int | None, side: int) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    node = helper.make_node("MatMul", ["left", "right"], ["result"])
    model = _quantised(node, (side, side), (side, side))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    left = _numbers((side, side))
    return lambda: session.run(None, {"input": left})


def _openvino_convolution(compute: Compute, threads: int | None, channels: int) -> _Work:
    """A 3x3 convolution of 52 x 52 pixels: on a CPU faster than any product of matrices."""
    from cris_deploy.execution.backends.openvino import core

    shape, kernel = (1, channels, _PIXELS, _PIXELS), (channels, channels, 3, 3)
    node = helper.make_node("Conv", ["left", "right"], ["result"], pads=[1, 1, 1, 1])
    if compute is Compute.INT8:
        model = _quantised(node, shape, kernel)
    else:
        node.input[0] = "input"
        model = _model([node], shape, {"right": _numbers(kernel)})
    config: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": "bf16" if compute is Compute.BF16 else "f32"
    }
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    compiled = core().compile_model(core().read_model(model.SerializeToString()), "CPU", config)
    request, left = compiled.create_infer_request(), _numbers(shape)
    return _Work(
        2 * math.prod(kernel) * _PIXELS**2,
        lambda: request.infer([left], share_inputs=True, share_outputs=True),
    )


def _quantised(
    node: onnx.NodeProto, shape: tuple[int, ...], weights: tuple[int, ...]
) -> onnx.ModelProto:
    """A node of int8 "left" and int8 weights "right", in the form in which a bundle has it."""
    axis = 1 if node.op_type == "MatMul" else 0  # of the weights' scales
    constants: dict[str, Any] = {
        "step": np.float32(0.03),
        "zero": np.int8(0),
        "weights": np.random.default_rng(1).integers(-127, 127, weights, np.int8),
        "steps": np.full(weights[axis], 0.01, np.float32),
        "zeros": np.zeros(weights[axis], np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "step", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "step", "zero"], ["left"]),
        helper.make_node("DequantizeLinear", ["weights", "steps", "zeros"], ["right"], axis=axis),
        node,
    ]
    return _model(nodes, shape, constants)


def _model(
    nodes: list[onnx.NodeProto], shape: tuple[int, ...], constants: dict[str, Any]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "ceiling",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _numbers(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _copy_rate(place: Place, size: int) -> float:
    """Bytes read plus bytes written, per second."""
    source = torch.ones(size, dtype=torch.uint8, device=str(place))
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), place)


def _best(run: Callable[[], object], place: Place) -> float:
    seconds = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        with torch.inference_mode():
            run()
        if place.on_gpu:
            torch.cuda.synchronize(str(place))
        seconds.append(time.perf_counter() - start)
    return min(seconds)
