"""ONNX Runtime on a GPU that is a stand-in: sessions, CUDA graphs, libraries and choices."""

import gc
import logging

import numpy as np
import onnx
import pytest

from cris_deploy import Engine
from cris_deploy.bundle.manifest import Precision
from cris_deploy.bundle.reading import Bundle, GraphName
from cris_deploy.errors import BackendError
from cris_deploy.execution.backends import (
    Compute,
    Device,
    onnxruntime,
    onnxruntime_cuda,
    tensorrt_runtime,
)
from cris_deploy.execution.backends.cuda_libraries import load_libraries
from cris_deploy.execution.cuda.device import open_device
from cris_deploy.machine import gpu
from cris_deploy.proof.check import check
from tests.helpers.tiny_bundle import rehash
from tests.stand_ins.fake_machine import BACKENDS, machine, surveyed
from tests.stand_ins.fake_tensorrt import GPU

__all__ = ["machine"]

IMAGE = np.random.default_rng(3).integers(0, 256, (48, 80, 3), np.uint8)
GPUS = (gpu.Gpu("NVIDIA H100", "sm90", 80 << 30), gpu.Gpu("NVIDIA L4", "sm89", 24 << 30))


@pytest.mark.parametrize("streams", [1, 2])
def test_weights_lie_on_the_gpu_once_for_all_sizes(machine, streams):
    """And once per stream: a session runs on the stream that it was made for."""
    with machine.engine("onnxruntime", streams=streams, cache=False) as engine:
        for count in (1, 2, 3, 5, 8, 20):
            engine.segment(IMAGE, [f"n{i}" for i in range(count)])
            list(engine.stream([(IMAGE, "a"), (IMAGE[::-1].copy(), "b")] * count))
        used = {session.stream for session in machine.onnxruntime.sessions}
        assert len(used) <= streams
        assert len(machine.onnxruntime.sessions) == 3 * len(used)
        decoder = [s for s in machine.onnxruntime.sessions if len(s.shapes) == 6]
        # One row of the mask decoder, several of one image, several of as many images.
        assert max(len(session.captured) for session in decoder) >= 5
    machine.check()


def test_a_lane_that_failed_leaves_no_session(machine):
    with machine.engine("onnxruntime", cache=False) as engine:
        machine.onnxruntime.failure = "CUDA failure 2: out of memory"
        with pytest.raises(BackendError, match="out of memory"):
            engine.segment(IMAGE, "a cat")
        gc.collect()
        before = len(machine.onnxruntime.sessions)
        assert engine.segment(IMAGE, "a cat").logits.any()
        assert len(machine.onnxruntime.sessions) == before + 3
    machine.check()


def test_what_is_found_for_a_size_is_found_in_company(machine):
    """A convolution's algorithm, memory: before the moment in which nobody else may run."""
    with machine.engine("onnxruntime") as engine:
        engine.segment(IMAGE, "a cat")
        for session in machine.onnxruntime.sessions:
            assert (session.runs, len(session.captured)) == (2, 1)
            assert session.settings["cudnn_conv_algo_search"] == "HEURISTIC"
        engine.segment(IMAGE[::-1].copy(), "a cat")


def test_versions_that_replay_wrongly_do_not_capture(machine, caplog):
    machine.onnxruntime.__version__ = "1.29.2"
    with machine.engine("onnxruntime") as engine:
        engine.segment(IMAGE, "a cat")
        assert not any(session.graphs for session in machine.onnxruntime.sessions)
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "1.29.2 runs without CUDA graphs" in record.getMessage()
    assert "'onnxruntime-gpu>=1.30'" in record.getMessage()


def test_a_missing_library_is_named(machine, capsys):
    machine.missing = {"libcudnn.so.9", "libcublasLt.so.13"}
    said = r"needs CUDA 13 and cuDNN 9, and libcublasLt\.so\.13, libcudnn\.so\.9 cannot be loaded"
    with pytest.raises(BackendError, match=said + r": run pip install 'cris-deploy\[gpu\]'"):
        machine.engine("onnxruntime")
    assert capsys.readouterr().out == ""  # ONNX Runtime prints, and stdout is the caller's


def test_libraries_are_asked_for_by_the_loader(machine, monkeypatch):
    monkeypatch.undo()
    surveyed(monkeypatch, *GPUS)
    asked: list[str] = []
    load_libraries(machine.onnxruntime, 0, asked.append)
    assert asked == [
        *("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13"),
        *("libcurand.so.10", "libcudnn.so.9"),
    ]

    machine.onnxruntime.cuda_version = ""
    load_libraries(machine.onnxruntime, 0, pytest.fail)
    machine.onnxruntime.cuda_version = "13.0"

    def none(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    with pytest.raises(BackendError, match=r"libcudart\.so\.13, .*libcudnn\.so\.9 cannot"):
        load_libraries(machine.onnxruntime, 0, none)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_an_old_driver_is_named(machine, monkeypatch, backend):
    surveyed(monkeypatch, *GPUS, cuda=(12, 8))
    with pytest.raises(BackendError, match=r"driver serves CUDA 12\.8 .* install driver 580 or"):
        machine.engine(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gpu_by_number(machine, monkeypatch, backend):
    surveyed(monkeypatch, *[gpu.Gpu(GPU, "sm86", 1 << 30)] * 2)
    asked = []

    def opened(lanes, index, timeout):
        asked.append(index)
        return open_device(lanes, timeout=timeout)  # the stand-in has one GPU

    monkeypatch.setattr(onnxruntime_cuda, "open_device", opened)
    monkeypatch.setattr(tensorrt_runtime, "open_device", opened)
    for text, place in (("cuda", "cuda"), ("cuda:0", "cuda"), ("cuda:1", "cuda:1")):
        with Engine(machine.bundle, backend=backend, device=text) as engine:
            assert (engine.info.device, engine.info.choice.place) == (Device.CUDA, place)
    assert asked == [0, 0, 1]
    check(machine.bundle, backend=backend, device="cuda:1", min_iou=0.0)
    assert asked[3:] == [1, 1]  # stages, and the full graph


def test_a_gpu_that_is_not_there(machine, monkeypatch):
    surveyed(monkeypatch, *GPUS)
    for options in ({"backend": "onnxruntime"}, {}):
        with pytest.raises(BackendError, match="cuda:7: 2 GPUs are here: give cuda:0 to cuda:1"):
            Engine(machine.bundle, device="cuda:7", **options)


def test_int8_is_float32_on_the_gpu_and_said_to_be():
    """The provider has kernels that round to int8, and none that multiplies in it."""
    assert onnxruntime.computes(Precision.INT8, Device.CUDA) == (Compute.FP32,)
    possible = onnxruntime.computes(Precision.INT8, Device.CPU)
    assert {*possible} == {Compute.INT8, Compute.FP32}
    assert onnxruntime.computes(Precision.FP16, Device.CUDA) == (Compute.FP16,)


def test_a_graph_with_a_node_for_the_cpu_says_what_to_do(machine):
    """As bundles have that were exported before the sentence was found by comparison."""
    bundle = Bundle.open(machine.bundle)
    path = bundle.graph(GraphName.TEXT_ENCODER)
    model = onnx.load(path, load_external_data=False)
    lookup = next(node for node in model.graph.node if node.op_type == "ReduceMax")
    lookup.CopyFrom(onnx.helper.make_node("ArgMax", ["tokens"], lookup.output, axis=1))
    onnx.save(model, path)
    rehash(machine.bundle)
    with pytest.raises(BackendError, match=r"no CUDA kernel for a node of text_encoder\.onnx: exp"):
        machine.engine("onnxruntime")
