"""Deployment engine for CRIS, CLIP-driven referring image segmentation.

from cris_deploy import Engine

result = Engine("model.bundle").segment("photo.jpg", "the man in red")
result.mask  # (H, W) bool
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cris_deploy.batcher import BatchCounts, Batcher, BatchLimits
    from cris_deploy.bundle.manifest import Precision
    from cris_deploy.engine import Engine
    from cris_deploy.errors import (
        BackendError,
        BundleError,
        BusyError,
        CrisError,
        EngineTimeoutError,
        ExpressionError,
        ImageError,
        InputError,
        KernelError,
    )
    from cris_deploy.execution.backends import BackendName, Choice, Compute, Device
    from cris_deploy.execution.cache import CacheCounts
    from cris_deploy.proof.check import CheckReport, check
    from cris_deploy.results.converters import to_fiftyone, to_supervision
    from cris_deploy.results.device_segmentation import DeviceSegmentation
    from cris_deploy.results.engine_info import CacheInfo, EngineInfo, MemoryUse
    from cris_deploy.results.scene import Scene
    from cris_deploy.results.segmentation import Segmentation
    from cris_deploy.words.tokenizer import TruncationWarning

__all__ = [
    "BackendError",
    "BackendName",
    "BatchCounts",
    "BatchLimits",
    "Batcher",
    "BundleError",
    "BusyError",
    "CacheCounts",
    "CacheInfo",
    "CheckReport",
    "Choice",
    "Compute",
    "CrisError",
    "Device",
    "DeviceSegmentation",
    "Engine",
    "EngineInfo",
    "EngineTimeoutError",
    "ExpressionError",
    "ImageError",
    "InputError",
    "KernelError",
    "MemoryUse",
    "Precision",
    "Scene",
    "Segmentation",
    "TruncationWarning",
    "__version__",
    "check",
    "to_fiftyone",
    "to_supervision",
]

_MODULES = {
    "execution.backends": ("BackendName", "Choice", "Compute", "Device"),
    "proof.check": ("CheckReport", "check"),
    "results.device_segmentation": ("DeviceSegmentation",),
    "batcher": ("BatchCounts", "BatchLimits", "Batcher"),
    "engine": ("Engine",),
    "execution.cache": ("CacheCounts",),
    "errors": (
        "BackendError",
        "BundleError",
        "BusyError",
        "CrisError",
        "EngineTimeoutError",
        "ExpressionError",
        "ImageError",
        "InputError",
        "KernelError",
    ),
    "bundle.manifest": ("Precision",),
    "results.converters": ("to_fiftyone", "to_supervision"),
    "results.engine_info": ("CacheInfo", "EngineInfo", "MemoryUse"),
    "results.scene": ("Scene",),
    "results.segmentation": ("Segmentation",),
    "words.tokenizer": ("TruncationWarning",),
}


def __getattr__(name: str) -> object:
    # Names are imported when first used, so that importing this package costs nothing.
    import importlib
    import importlib.metadata

    if name == "__version__":
        return importlib.metadata.version("cris-deploy")
    for module, names in _MODULES.items():
        if name in names:
            value: object = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
