"""A machine with one GPU that is a stand-in, in pieces that tests break."""

import gc
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from cris_deploy import Engine
from cris_deploy.bundle.plans import RuntimeName
from cris_deploy.execution.backends import cuda_libraries
from cris_deploy.execution.backends import onnxruntime as onnxruntime_backend
from cris_deploy.execution.backends import tensorrt_runtime as tensorrt_backend
from cris_deploy.execution.cuda import executor as device_executor
from cris_deploy.machine import gpu
from cris_deploy.pixels import on_gpu as device
from cris_deploy.pixels.mask import KernelsBuild, KernelsStatus
from tests.helpers.plans import write_plans
from tests.stand_ins.fake_cuda import FakeCuda
from tests.stand_ins.fake_kernels import FakeKernels
from tests.stand_ins.fake_onnxruntime import FakeOnnxRuntime
from tests.stand_ins.fake_tensorrt import GPU, FakeTensorRt

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")


class Machine:
    """The GPU, the libraries, and a bundle with plans."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
        self.bundle = bundle
        self.cuda = FakeCuda()
        self.kernels = FakeKernels(self.cuda)
        self.onnxruntime = FakeOnnxRuntime(self.cuda)
        self.tensorrt = FakeTensorRt(self.cuda)
        self.rtx = FakeTensorRt(self.cuda, rtx=True)
        write_plans(bundle)
        write_plans(bundle, RuntimeName.TENSORRT_RTX, gpu=None)
        survey = gpu.Survey((gpu.Gpu(GPU, "sm86", 1 << 30),), None)
        monkeypatch.setattr(gpu, "survey_gpus", lambda: survey)
        modules = {"tensorrt": self.tensorrt, "tensorrt_rtx": self.rtx}
        load = SimpleNamespace(import_module=lambda name: modules[name])
        monkeypatch.setattr(tensorrt_backend, "importlib", load)
        monkeypatch.setattr(onnxruntime_backend, "_module", lambda: self.onnxruntime)
        self.missing: set[str] = set()  # libraries that cannot be loaded
        monkeypatch.setattr(cuda_libraries, "_loads", lambda name, load: name not in self.missing)
        find = importlib.util.find_spec
        here = ("tensorrt", "tensorrt_rtx", "onnxruntime")
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: name if name in here else find(name)
        )
        monkeypatch.setattr(device, "_cuda_kernels", lambda: self.kernels)
        status = KernelsStatus(KernelsBuild.BUILT, "fake", (86,))
        monkeypatch.setattr(device_executor.masks, "kernels_status", lambda: status)

    def engine(self, backend: str, **options: object) -> Engine:
        return Engine(self.bundle, backend=backend, device="cuda", **options)

    def check(self) -> None:
        """Nothing that CUDA forbids was done."""
        assert self.cuda.problems == [], self.cuda.problems


def surveyed(
    monkeypatch: pytest.MonkeyPatch, *gpus: gpu.Gpu, cuda: tuple[int, int] | None = (13, 2)
) -> None:
    """Let the driver show these GPUs."""
    problem = None if gpus else "there is no NVIDIA driver"
    monkeypatch.setattr(gpu, "survey_gpus", lambda: gpu.Survey(gpus, problem, cuda))


@pytest.fixture
def machine(own_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    gc.freeze()  # what other tests hold is not looked through below, which took seconds
    machine = Machine(monkeypatch, own_bundle)
    yield machine
    gc.collect()  # what is left goes back to this GPU, not to that of the next test
    gc.unfreeze()
    machine.cuda.unplug()
