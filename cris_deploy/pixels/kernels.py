"""The compiled extension: whether it is there, whether it can be used, and what it takes.

A file that is there was meant to be used, so one that cannot be loaded is an error.
"""

import importlib.util
from dataclasses import dataclass
from enum import Enum
from functools import cache, lru_cache
from types import ModuleType

from cris_deploy.errors import KernelError
from cris_deploy.pixels.image import Letterbox

_EXTENSION = "cris_deploy._kernels"
_INTERFACE = 1  # what this file expects of the extension; raised with it


class KernelsBuild(Enum):
    """Whether the compiled extension can be used."""

    BUILT = "built"
    NOT_BUILT = "not built"
    WRONGLY_BUILT = "wrongly built"


@dataclass(frozen=True, slots=True)
class KernelsStatus:
    """What `kernels_status` found.

    `simd` is the instruction set of the inner loops on this machine, `cuda` the GPU architectures
    that were compiled in (compute capability times ten, empty if none), `reason` says in one
    sentence why the extension is not in use and what to do, or is None.
    """

    build: KernelsBuild
    simd: str | None = None
    cuda: tuple[int, ...] = ()
    reason: str | None = None


def kernels_status() -> KernelsStatus:
    """Say whether the compiled extension is in use, and with what. Queries no GPU. Never raises."""
    try:
        kernels = load_kernels()
    except KernelError as error:
        return KernelsStatus(KernelsBuild.WRONGLY_BUILT, reason=str(error))
    if kernels is None:
        return KernelsStatus(
            KernelsBuild.NOT_BUILT,
            reason="cris_deploy._kernels is absent, OpenCV is used instead: "
            "install with a C++ compiler at hand (pip install .) for the fast mask step",
        )
    cuda = tuple(int(name) for name in kernels.CUDA_ARCHITECTURES.split(",") if name)
    return KernelsStatus(KernelsBuild.BUILT, simd=kernels.simd(), cuda=cuda)


@cache
def load_kernels() -> ModuleType | None:
    """Import the compiled extension; None where it has not been built.

    Raises KernelError if it is there but cannot be loaded: a file that is there was meant to be
    used, so nothing falls back silently.
    """
    if importlib.util.find_spec(_EXTENSION) is None:
        return None
    remedy = "build it again (pip install --force-reinstall --no-deps .)"
    try:
        kernels = importlib.import_module(_EXTENSION)
    except ImportError as error:
        raise KernelError(
            f"{_EXTENSION} is present but cannot be loaded: {error}; {remedy}"
        ) from error
    interface = getattr(kernels, "INTERFACE", None)
    if interface != _INTERFACE:
        raise KernelError(
            f"{_EXTENSION} has interface {interface}, and {_INTERFACE} is wanted: {remedy}"
        )
    return kernels


@lru_cache(maxsize=256)
def kernel_frame(kernels: ModuleType, box: Letterbox) -> object:
    """Give a letterbox in the form the extension takes."""
    matrix = box.matrix  # no rotation or shear
    return kernels.Frame(
        box.height,
        box.width,
        scale_y=matrix[1, 1],
        offset_y=matrix[1, 2],
        scale_x=matrix[0, 0],
        offset_x=matrix[0, 2],
    )
