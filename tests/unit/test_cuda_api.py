"""The stand-ins have the interfaces of the real libraries; small parts of the CUDA package."""

import inspect
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from cris_deploy.cuda import api
from cris_deploy.cuda.gate import Gate
from cris_deploy.cuda.graph import Slot
from cris_deploy.cuda.memory import DeviceTensor, aligned
from cris_deploy.errors import BackendError
from tests.unit import fake_tensorrt
from tests.unit.fake_cuda import _VALUES, FakeCuda


def functions() -> list[str]:
    return sorted(name for name, value in vars(FakeCuda).items() if hasattr(value, "arguments"))


@pytest.mark.parametrize("name", functions())
def test_cuda_functions_take_what_the_real_ones_take(name):
    runtime = pytest.importorskip("cuda.bindings.runtime")
    # "cudaMemcpyAsync(dst, src, size_t count, kind: cudaMemcpyKind, stream)"
    signature = re.match(rf"{name}\((.*?)\)", getattr(runtime, name).__doc__).group(1)
    real = [
        re.split(r"[:=]", argument)[0].split()[-1] for argument in signature.split(",") if argument
    ]
    assert len(getattr(FakeCuda, name).arguments) == len(real), signature
    # The order tells: only those that say what they are under another name may differ.
    assert list(getattr(FakeCuda, name).arguments) == real


def test_cuda_names_exist():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    assert runtime.cudaStreamNonBlocking == FakeCuda.cudaStreamNonBlocking
    assert runtime.cudaEventDisableTiming == FakeCuda.cudaEventDisableTiming
    assert runtime.cudaHostAllocDefault == FakeCuda.cudaHostAllocDefault
    assert int(runtime.cudaError_t.cudaErrorMemoryAllocation) == 2
    for name in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        for member in getattr(FakeCuda, name):
            assert int(getattr(getattr(runtime, name), member.name)) == member.value
    for group in (
        "cudaMemAllocationType",
        "cudaMemAllocationHandleType",
        "cudaMemLocationType",
        "cudaMemPoolAttr",
    ):
        for name, value in vars(getattr(FakeCuda, group)).items():
            assert int(getattr(getattr(runtime, group), name)) == value


def test_a_real_runtime_without_a_driver_takes_the_arguments_and_gives_errors():
    runtime = pytest.importorskip("cuda.bindings.runtime")
    driver = pytest.importorskip("cuda.bindings.driver")
    status, count = runtime.cudaGetDeviceCount()
    if int(status) == 0 and count:
        pytest.skip("there is a GPU")
    cuda = api.Cuda(runtime, driver.cuuint64_t)
    properties = runtime.cudaMemPoolProps()
    properties.location.id = 0
    properties.location.type = runtime.cudaMemLocationType.cudaMemLocationTypeDevice
    properties.allocType = runtime.cudaMemAllocationType.cudaMemAllocationTypePinned
    properties.handleTypes = runtime.cudaMemAllocationHandleType.cudaMemHandleTypeNone
    pool, threshold = runtime.cudaMemPool_t(0), cuda.uint64(1 << 40)
    attribute = runtime.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
    copy = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    arguments = {
        "cudaEventCreate": (),
        "cudaEventCreateWithFlags": (runtime.cudaEventDisableTiming,),
        "cudaEventDestroy": (16,),
        "cudaEventElapsedTime": (16, 32),
        "cudaEventRecord": (16, 32),
        "cudaEventSynchronize": (16,),
        "cudaFreeAsync": (16, 32),
        "cudaFreeHost": (16,),
        "cudaGetDevice": (),
        "cudaGraphDestroy": (runtime.cudaGraph_t(0),),
        "cudaGraphExecDestroy": (runtime.cudaGraphExec_t(0),),
        "cudaGraphInstantiate": (runtime.cudaGraph_t(0), 0),
        "cudaGraphLaunch": (runtime.cudaGraphExec_t(0), 16),
        "cudaHostAlloc": (16, runtime.cudaHostAllocDefault),
        "cudaMallocFromPoolAsync": (16, pool, 32),
        "cudaMemGetInfo": (),
        "cudaMemPoolCreate": (properties,),
        "cudaMemPoolDestroy": (pool,),
        "cudaMemPoolSetAttribute": (pool, attribute, threshold),
        "cudaMemPoolTrimTo": (pool, 0),
        "cudaMemcpyAsync": (16, 32, 8, copy, 64),
        "cudaMemsetAsync": (16, 0, 8, 64),
        "cudaSetDevice": (0,),
        "cudaStreamBeginCapture": (16, mode),
        "cudaStreamCreateWithFlags": (runtime.cudaStreamNonBlocking,),
        "cudaStreamDestroy": (16,),
        "cudaStreamEndCapture": (16,),
        "cudaStreamSynchronize": (16,),
        "cudaStreamWaitEvent": (16, 32, 0),
    }
    assert sorted(arguments) == functions()
    for name, given in arguments.items():
        with pytest.raises(BackendError, match=rf"CUDA failed in {name}: cudaError\w+ \("):
            cuda.call(name, *given)
        assert not cuda.try_call(name, *given)
        values = getattr(runtime, name)(*given)
        assert len(values) - 1 == _VALUES.get(name, 0), name


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_has_what_is_used(module):
    real = pytest.importorskip(module)
    pairs = [
        (real.ICudaEngine, fake_tensorrt.Engine),
        (real.IExecutionContext, fake_tensorrt.Context),
        (real.Runtime, fake_tensorrt.Runtime),
    ]
    if module == "tensorrt_rtx":
        pairs.append((real.IRuntimeConfig, fake_tensorrt.RuntimeConfig))
        assert real.DynamicShapesKernelSpecializationStrategy.EAGER
        assert real.CudaGraphStrategy.DISABLED
        assert isinstance(
            real.IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy, property
        )
        assert isinstance(real.IRuntimeConfig.cuda_graph_strategy, property)
        assert real.IExecutionContext.is_stream_capturable
    for theirs, ours in pairs:
        for name, function in inspect.getmembers(ours, inspect.isfunction):
            if (
                name in ("compute",)
                or name.startswith("_")
                or (module == "tensorrt" and name == "create_runtime_config")
            ):
                continue
            assert hasattr(theirs, name), f"{theirs} has no {name}"
            if name == "create_execution_context":  # overloads
                continue
            text = getattr(theirs, name).__doc__
            # "name(self: Type, first: Type, ...) -> Type"
            real_count = len(re.findall(r"[(,] ?\w+: ", text.split("->")[0]))
            count = len(inspect.signature(function).parameters)
            assert "Overloaded" in text or real_count == count, text
    assert isinstance(real.ICudaEngine.num_io_tensors, property)
    for enum, members in (
        ("TensorIOMode", ("INPUT", "OUTPUT")),
        ("ExecutionContextAllocationStrategy", ("USER_MANAGED",)),
    ):
        for member in members:
            assert hasattr(getattr(real, enum), member)
    assert real.ILogger.Severity.INTERNAL_ERROR
    assert np.dtype(real.nptype(real.DataType.HALF)) == np.float16
    assert np.dtype(real.nptype(real.DataType.BOOL)) == np.bool_


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_the_log_of_a_real_builder(module):
    real = pytest.importorskip(module)
    from cris_deploy.backends.tensorrt import _make_log

    log = _make_log(real)
    parser_log_is_accepted = real.Builder(log)
    assert parser_log_is_accepted is not None
    log.log(real.ILogger.Severity.WARNING, "a warning")
    log.log(real.ILogger.Severity.ERROR, "two\n  lines")
    assert log.said() == "two lines"
    log.clear()
    assert log.said() == ""


# Parts


def test_gate_lets_many_in_or_one_alone():
    gate, inside, seen = Gate(), [], []

    def many(_=None):
        for _ in range(50):
            gate.enter()
            inside.append(1)
            time.sleep(0.0001)
            inside.pop()
            gate.leave()

    def one():
        for _ in range(10):
            gate.enter()
            with gate.alone():
                seen.append(len(inside))
            gate.leave()

    threads = [threading.Thread(target=many) for _ in range(3)]
    threads += [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert seen == [0] * 30


def test_neighbours_go_in_one_copy_only_within_an_allocation():
    # Rows of two allocations may lie side by side by chance; a copy across them is no one's.
    copies = []
    lane = SimpleNamespace(use=lambda row: None, copy=lambda *arguments: copies.append(arguments))
    first, second = SimpleNamespace(pointer=1024), SimpleNamespace(pointer=1024 + 3 * 16)
    rows = [DeviceTensor(first, 16 * index, (1, 4), np.float32) for index in range(3)]
    rows += [DeviceTensor(second, 16 * index, (1, 4), np.float32) for index in (0, 1, 3)]
    target = DeviceTensor(SimpleNamespace(pointer=4096), 0, (8, 4), np.float32)
    Slot(lane, {"x": target}, None).fill("x", rows)
    assert copies == [(1024, 4096, 48), (1072, 4144, 32), (1120, 4176, 16)]
    with pytest.raises(BackendError, match="features of another bundle"):
        Slot(lane, {"x": target}, None).fill("x", [DeviceTensor(first, 0, (1, 5), np.float32)])


def test_aligned():
    assert [aligned(size) for size in (0, 1, 256, 257)] == [0, 256, 256, 512]
