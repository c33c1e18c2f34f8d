"""What a machine is capable of: the rate of a large matrix product, and of a large copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from cris_bench.ours import Way
from cris_bench.record import Ceiling
from cris_deploy.backends import BackendName, Compute, Device

SIDE: Final = 2048
COPY_BYTES: Final = 1 << 28
_RUNS: Final = 12
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
    found: dict[tuple[Device, Compute], BackendName] = {}
    for way in ways:
        # A mixed arithmetic has its products in int8.
        key = way.device, Compute.INT8 if way.compute is Compute.INT8_BF16 else way.compute
        # OpenVINO's int8 product is the faster one, where there is a choice.
        if key not in found or way.backend is BackendName.OPENVINO:
            found[key] = way.backend
    copies = {device: _copy_rate(device, copy_bytes) for device in {key[0] for key in found}}
    ceilings = []
    for (device, compute), backend in found.items():
        seconds = _best(_product(device, compute, backend, threads, side), device)
        ceilings.append(Ceiling(device.value, compute.value, 2 * side**3 / seconds, copies[device]))
    return tuple(ceilings)


def _product(
    device: Device, compute: Compute, backend: BackendName, threads: int | None, side: int
) -> Callable[[], object]:
    if compute is Compute.INT8 and device is Device.CPU:
        return _int8_product(backend, threads, side)
    if compute is Compute.INT8:
        left, right = (
            torch.randint(-127, 127, (side, side), dtype=torch.int8, device=device.value)
            for _ in range(2)
        )
        return lambda: torch._int_mm(left, right)
    first, second = (torch.randn(side, side).to(device.value, _TORCH[compute]) for _ in range(2))
    return lambda: first @ second


def _int8_product(backend: BackendName, threads: int | None, side: int) -> Callable[[], object]:
    """A product of uint8 and int8 in the form in which a bundle has them."""
    model = _quantised_product(side)
    left = np.random.default_rng(0).integers(0, 255, (side, side), np.uint8)
    if backend is BackendName.OPENVINO:
        from cris_deploy.backends.openvino import core

        config: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        graph = core().read_model(model.SerializeToString())
        compiled = core().compile_model(graph, "CPU", config)
        request = compiled.create_infer_request()
        return lambda: request.infer([left], share_inputs=True, share_outputs=True)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"left": left})


def _quantised_product(side: int) -> onnx.ModelProto:
    constants: dict[str, Any] = {
        "scale": np.float32(0.01),
        "zero": np.uint8(128),
        "right": np.random.default_rng(1).integers(-127, 127, (side, side), np.int8),
        "scales": np.full(side, 0.01, np.float32),
        "zeros": np.zeros(side, np.int8),
    }
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["left", "scale", "zero"], ["a"]),
            helper.make_node("DequantizeLinear", ["right", "scales", "zeros"], ["b"], axis=1),
            helper.make_node("MatMul", ["a", "b"], ["product"]),
        ],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, (side, side))],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, (side, side))],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _copy_rate(device: Device, size: int) -> float:
    """Bytes read plus bytes written, per second."""
    source = torch.ones(size, dtype=torch.uint8, device=device.value)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _best(run: Callable[[], object], device: Device) -> float:
    seconds = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        with torch.inference_mode():
            run()
        if device is Device.CUDA:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
