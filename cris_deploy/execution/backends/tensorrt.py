"""TensorRT, on NVIDIA GPUs: plans that cris-export built, by `tensorrt_runtime`."""

from typing import Final

from cris_deploy.bundle.manifest import Precision
from cris_deploy.bundle.plans import RuntimeName
from cris_deploy.execution.backends.interface import Compute, Device, Runtime, Settings

PACKAGE: Final = "tensorrt"
DISTRIBUTIONS: Final = ("tensorrt",)
INSTALL: Final = "pip install 'cris-deploy[tensorrt]'"
DEVICES: Final = (Device.CUDA,)
REMEDIES: Final = {Device.CPU: "take backend openvino or onnxruntime, or device cuda"}

_OLDEST: Final = (10, 13)


def installed_devices() -> tuple[Device, ...]:
    """Name the devices: NVIDIA GPUs. Whether there is one shows on loading."""
    return DEVICES


def computes(precision: Precision, device: Device) -> tuple[Compute, ...]:
    """Give the one arithmetic of a strongly typed plan: what is stored."""
    return (Compute(precision.value),)


def create(settings: Settings) -> Runtime:
    """Make the runtime; BackendError if there is no GPU, driver, cuda-core or TensorRT."""
    from cris_deploy.execution.backends.tensorrt_runtime import TensorRt

    return TensorRt(RuntimeName.TENSORRT, PACKAGE, _OLDEST, settings)
