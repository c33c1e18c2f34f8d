"""The stand-ins have the interfaces of the real libraries; small parts of the CUDA package."""

import inspect
import re
import threading
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cris_deploy.errors import BackendError
from cris_deploy.execution.cuda.api import INSTALL
from cris_deploy.execution.cuda.graph import BoundGraph
from cris_deploy.execution.cuda.memory import DeviceTensor, aligned
from cris_deploy.execution.cuda.shared_lock import SharedLock
from tests.stand_ins import fake_tensorrt


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
        pairs.append((real.IRuntimeCache, fake_tensorrt.RuntimeCache))
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
    from cris_deploy.execution.backends.tensorrt_plan import make_log

    log = make_log(real)
    parser_log_is_accepted = real.Builder(log)
    assert parser_log_is_accepted is not None
    log.log(real.ILogger.Severity.WARNING, "a warning")
    log.log(real.ILogger.Severity.ERROR, "two\n  lines")
    assert log.said() == "two lines"
    log.clear()
    assert log.said() == ""


def test_what_is_to_be_installed_is_what_the_extras_install():
    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    asked = set(re.findall("'([^']+)'", INSTALL))
    assert len(asked) == 2
    for extra in ("gpu", "tensorrt", "tensorrt-rtx"):
        assert asked <= {*extras["optional-dependencies"][extra]}


# Parts


def test_gate_lets_many_in_or_one_alone():
    gate, inside, seen = SharedLock(), [], []

    def many(_=None):
        me = object()
        for _ in range(50):
            gate.enter(me)
            inside.append(1)
            time.sleep(0.0001)
            inside.pop()
            gate.leave(me)

    def one():
        me = object()
        for _ in range(10):
            gate.enter(me)
            with gate.alone(me):
                seen.append(len(inside))
            gate.leave(me)

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
    BoundGraph(lane, {"x": target}, None).fill("x", rows)
    assert copies == [(1024, 4096, 48), (1072, 4144, 32), (1120, 4176, 16)]
    with pytest.raises(BackendError, match="features of another bundle"):
        BoundGraph(lane, {"x": target}, None).fill(
            "x", [DeviceTensor(first, 0, (1, 5), np.float32)]
        )


def test_aligned():
    assert [aligned(size) for size in (0, 1, 256, 257)] == [0, 256, 256, 512]
