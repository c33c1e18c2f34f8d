"""TensorRT-RTX, on NVIDIA GPUs: plans that cris-export built, by `tensorrt_runtime`."""

from typing import Final

from cris_deploy.bundle.plans import RuntimeName
from cris_deploy.execution.backends.interface import Runtime, Settings
from cris_deploy.execution.backends.tensorrt import DEVICES, REMEDIES, computes, installed_devices

__all__ = [
    "DEVICES",
    "DISTRIBUTIONS",
    "INSTALL",
    "PACKAGE",
    "REMEDIES",
    "computes",
    "create",
    "installed_devices",
]

PACKAGE: Final = "tensorrt_rtx"
DISTRIBUTIONS: Final = ("tensorrt_rtx", "tensorrt-rtx")
INSTALL: Final = "pip install 'cris-deploy[tensorrt-rtx]'"

# The first that has CudaGraphStrategy, is_stream_capturable and plans that can be captured.
_OLDEST: Final = (1, 2)


def create(settings: Settings) -> Runtime:
    """Make the runtime; BackendError if there is no GPU, driver, cuda-core or TensorRT-RTX."""
    from cris_deploy.execution.backends.tensorrt_runtime import TensorRt

    return TensorRt(RuntimeName.TENSORRT_RTX, PACKAGE, _OLDEST, settings)
