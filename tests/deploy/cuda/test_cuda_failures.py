"""A GPU that fails during a call: an error that says so, and the next call works. A stand-in's GPU.

See `fake_cuda` for what the stand-in checks.
"""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cris_deploy.bundle.plans import folder
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError, EngineTimeoutError
from cris_deploy.execution.cuda import api
from cris_deploy.execution.cuda.device import CudaDevice, open_device
from cris_deploy.execution.cuda.graph import Captured
from cris_deploy.machine import gpu
from cris_deploy.proof.check import Route, check
from tests.stand_ins.fake_cuda import ECC, INVALID, LAUNCH_FAILED, OUT_OF_MEMORY
from tests.stand_ins.fake_kernels import ForeignArray
from tests.stand_ins.fake_machine import BACKENDS, machine

__all__ = ["machine"]

IMAGE = np.random.default_rng(3).integers(0, 256, (48, 80, 3), dtype=np.uint8)
OTHER = np.random.default_rng(4).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def same(result, expected) -> None:
    # As in test_device_executor: another batch size, another order of sums.
    np.testing.assert_allclose(result.logits, expected.logits, atol=1e-4)
    assert (result.mask != expected.mask).mean() < 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_of_memory_then_works(machine, backend):
    with machine.engine(backend) as engine:
        expected = engine.segment(IMAGE, "a")
        machine.cuda.capacity = machine.cuda.device_bytes + 4096  # not for eight rows
        with pytest.raises(BackendError, match=r"GPU is out of memory for .* MiB.*smaller batches"):
            engine.segment(OTHER, [f"n{i}" for i in range(8)])
        same(engine.segment(IMAGE, "a"), expected)  # all had been dropped, so there is room
        machine.cuda.capacity = 1 << 30
        assert len(engine.segment(OTHER, [f"n{i}" for i in range(8)])) == 8
    machine.check()


def test_memory_of_the_pool_is_given_back_before_giving_up(machine):
    with machine.engine("tensorrt") as engine:
        machine.cuda.fail("cuMemAllocFromPoolAsync", OUT_OF_MEMORY)
        trims = machine.cuda.calls.count("cuMemPoolTrimTo")
        assert engine.segment(IMAGE, "a").mask.shape == (48, 80)
        assert machine.cuda.calls.count("cuMemPoolTrimTo") == trims + 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("cuMemcpyAsync", "cuMemcpyAsync"),
        ("cuGraphLaunch", "Graph.launch"),
        ("cuEventRecord", "Stream.record"),
        ("cuStreamSynchronize", "Stream.sync"),
        ("cuMemAllocFromPoolAsync", "_MemPool.allocate"),
        ("cuCtxGetCurrent", "cuCtxGetCurrent"),
    ],
)
def test_any_function_may_fail(machine, function, said):
    with machine.engine("tensorrt") as engine:
        for _ in range(3):
            expected = engine.segment(IMAGE, "a")
        engine.pipeline.forget()
        machine.cuda.fail(function, INVALID)
        with pytest.raises(
            BackendError, match=rf"CUDA failed in {said}: CUDA_ERROR_INVALID_VALUE \(made up\)$"
        ):
            engine.segment(IMAGE, "a")
        for _ in range(3):
            same(engine.segment(IMAGE, "a"), expected)
    machine.check()


@pytest.mark.parametrize("status", [LAUNCH_FAILED, ECC])
def test_only_a_lost_gpu_is_said_to_be_lost(machine, status):
    with machine.engine("tensorrt") as engine:
        engine.segment(IMAGE, "a")
        machine.cuda.fail("cuMemcpyAsync", status)
        with pytest.raises(BackendError, match="GPU is lost to this process, start it again"):
            engine.segment(OTHER, "a")
    real = pytest.importorskip("cuda.bindings.driver").CUresult
    assert set(real.__members__) > api.STICKY


def test_what_fails_on_the_device_shows_when_it_is_waited_for(machine):
    with machine.engine("tensorrt") as engine:
        expected = engine.segment(IMAGE, "a")
        machine.cuda.asynchronous = LAUNCH_FAILED
        with pytest.raises(BackendError, match=r"Stream\.sync: CUDA_ERROR_LAUNCH_FAILED"):
            engine.segment(IMAGE, "a")
        same(engine.segment(IMAGE, "a"), expected)


def test_a_run_that_tensorrt_refuses(machine):
    with machine.engine("tensorrt", cuda_graphs=False) as engine:
        expected = engine.segment(IMAGE, "a")
        machine.tensorrt.failing_runs = 1
        with pytest.raises(BackendError, match=r"sm86\.plan failed to run: the engine broke"):
            engine.segment(OTHER, "a")
        same(engine.segment(IMAGE, "a"), expected)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("Failed to allocate memory for requested buffer of size 7", "GPU is out of memory"),
        ("CUDA failure 2: out of memory ; GPU=0", "GPU is out of memory"),
        ("CUDNN failure 5000", "onnxruntime .* failed: CUDNN failure 5000"),
    ],
)
def test_a_run_that_onnxruntime_refuses(machine, said, message):
    with machine.engine("onnxruntime") as engine:
        expected = engine.segment(IMAGE, "a")
        machine.onnxruntime.failure = said
        with pytest.raises(BackendError, match=message):
            engine.segment(OTHER, "a")
        same(engine.segment(IMAGE, "a"), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_device_that_vanishes_and_comes_back(machine, backend):
    with machine.engine(backend) as engine:
        expected = engine.segment(IMAGE, ["a", "b"])
        scene = engine.encode_image(IMAGE)
        on_device = engine.segment_on_device(ForeignArray(machine.cuda, IMAGE), "a")
        machine.cuda.lost = True
        for _ in range(2):
            with pytest.raises(BackendError, match=r"CUDA failed in .*start it again"):
                engine.segment(IMAGE, ["a", "b"])
        machine.cuda.come_back()
        for result, wanted in zip(engine.segment(IMAGE, ["a", "b"]), expected, strict=True):
            same(result, wanted)
        with pytest.raises(BackendError, match=r"GPU was lost.*encode it again"):
            scene.segment("a")
        with pytest.raises(BackendError, match=r"GPU was lost.*compute it again"):
            on_device.to_host()
        same(engine.encode_image(IMAGE).segment("a"), expected[0])
        del scene, on_device
        gc.collect()
        machine.cuda.finish_all()
        same(engine.segment(IMAGE, "a"), expected[0])
    machine.check()


def test_what_fails_on_the_way_out_does_not_hide_what_failed_before(machine):
    cuda = api.load_cuda()

    def leave(error: Exception | None) -> None:
        with cuda.on_device(0):
            machine.cuda.fail("cuCtxGetCurrent", INVALID)
            if error is not None:
                raise error

    with pytest.raises(EngineTimeoutError, match="too late"):
        leave(EngineTimeoutError("too late"))
    with pytest.raises(BackendError, match="cuCtxGetCurrent"):
        leave(None)


def test_a_failure_reaches_only_its_own_call(machine):
    options = {"streams": 2, "image_cache": 0, "cuda_graphs": False}
    with machine.engine("tensorrt", **options) as engine:
        expected = engine.segment(IMAGE, "a")
        machine.tensorrt.failing_runs = 3

        def attempt(_):
            try:
                return engine.segment(IMAGE, "a")
            except BackendError as error:
                return error

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(attempt, range(16)))
        failed = [result for result in results if isinstance(result, BackendError)]
        assert len(failed) == 3
        for result in results:
            if not isinstance(result, BackendError):
                same(result, expected)
    machine.check()


def test_memory_freed_during_a_capture_is_no_part_of_the_graph(machine):
    device = open_device(1)
    with device.lane() as lane:
        held = [lane.allocate(1000)]
        runs = []

        def enqueue():
            held.clear()  # as the collector may do, in any thread
            machine.cuda.enqueue(lane.stream.handle, lambda: runs.append(1))

        graph = Captured(lane, enqueue)
        for _ in range(3):
            graph.launch()
        lane.stream.wait()
        graph.close()
        assert len(runs) == 3
        assert machine.cuda.device_bytes == 0
    device.close()
    machine.check()


def test_refused_arguments_drop_nothing(machine):
    with machine.engine("tensorrt") as engine:
        engine.segment(IMAGE, "a")
        contexts = machine.tensorrt.contexts
        with pytest.raises(Exception, match="give"):
            engine.segment_on_device(ForeignArray(machine.cuda, IMAGE), "a", stream="s")
        engine.segment(IMAGE, "a")
        assert machine.tensorrt.contexts == contexts


# What is missing


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gpu(machine, monkeypatch, backend):
    survey = gpu.Survey((), "there is no NVIDIA driver")
    monkeypatch.setattr(gpu, "survey_gpus", lambda: survey)
    with pytest.raises(BackendError, match="device cuda: there is no NVIDIA driver: "):
        machine.engine(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_cuda_python(machine, monkeypatch, backend):
    class Nothing:
        @staticmethod
        def import_module(name):
            raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(api, "importlib", Nothing)
    api.load_cuda.cache_clear()
    with pytest.raises(BackendError, match=r"cuda-core cannot be imported.*pip install 'cuda-core"):
        machine.engine(backend)


def test_nodes_on_the_cpu_are_refused(machine):
    machine.onnxruntime.strangers = True
    with pytest.raises(
        BackendError,
        match=r"1 nodes of image_encoder\.onnx elsewhere than on cuda "
        r"\(Shape shape_1 on CPUExecutionProvider\)",
    ):
        machine.engine("onnxruntime")
    assert machine.onnxruntime.sessions[0].graphs


# What is passed over


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_that_loaded_in_part_leaves_nothing(machine, monkeypatch, backend):
    if backend == "onnxruntime":
        machine.onnxruntime.refused = "mask_decoder"
    else:
        (broken,) = folder(Bundle.open(machine.bundle)).glob(f"mask_decoder.{backend}.*.plan")
        broken.write_bytes(b"")
    closed = []
    close = CudaDevice.close
    # Watched, since what is left is freed in time, at a collection that nobody waits for.
    monkeypatch.setattr(CudaDevice, "close", lambda device: closed.append(close(device)))
    with pytest.raises(BackendError, match="mask_decoder"):
        machine.engine(backend)
    assert len(closed) == 1
    assert machine.cuda.live() == []
    machine.check()


def test_a_check_leaves_nothing(machine):
    report = check(machine.bundle, backend="tensorrt", device="cuda")
    assert Route.FULL in {sample.route for sample in report.samples}
    assert machine.cuda.live() == []
    machine.check()
