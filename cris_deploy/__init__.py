"""Deployment engine for CRIS, CLIP-driven referring image segmentation.

from cris_deploy import Engine

result = Engine("model.bundle").segment("photo.jpg", "the man in red")
result.mask  # (H, W) bool
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cris_deploy.backends import BackendName, Choice, Compute, Device
    from cris_deploy.bundle_check import CheckReport, check
    from cris_deploy.cuda.segmentation import DeviceSegmentation
    from cris_deploy.engine import Engine, EngineInfo, Scene
    from cris_deploy.errors import (
        BackendError,
        BundleError,
        CrisError,
        EngineTimeoutError,
        ExpressionError,
        ImageError,
        InputError,
        KernelError,
    )
    from cris_deploy.manifest import Precision
    from cris_deploy.segmentation import Segmentation
    from cris_deploy.text import TruncationWarning

__all__ = [
    "BackendError",
    "BackendName",
    "BundleError",
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
    "Precision",
    "Scene",
    "Segmentation",
    "TruncationWarning",
    "__version__",
    "check",
]

_MODULES = {
    "backends": ("BackendName", "Choice", "Compute", "Device"),
    "bundle_check": ("CheckReport", "check"),
    "cuda.segmentation": ("DeviceSegmentation",),
    "engine": ("Engine", "EngineInfo", "Scene"),
    "errors": (
        "BackendError",
        "BundleError",
        "CrisError",
        "EngineTimeoutError",
        "ExpressionError",
        "ImageError",
        "InputError",
        "KernelError",
    ),
    "manifest": ("Precision",),
    "segmentation": ("Segmentation",),
    "text": ("TruncationWarning",),
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
