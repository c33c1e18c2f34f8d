"""CUDA's and cuDNN's libraries for ONNX Runtime: loaded from where pip puts them, or named.

ONNX Runtime itself says of a missing one no more than that a node has no CUDA kernel.
"""

import ctypes
import io
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from types import ModuleType
from typing import Any, Final

from cris_deploy.errors import BackendError
from cris_deploy.machine import gpu

# What its CUDA provider links, and cuDNN, which it opens at the first convolution.
_LIBRARIES: Final = ("libcudart", "libcublasLt", "libcublas")
_OTHERS: Final = ("libcurand.so.10", "libcudnn.so.9")


def load_libraries(
    module: ModuleType, index: int, load: Callable[[str], Any] = ctypes.CDLL
) -> None:
    """Load what `onnxruntime` needs of CUDA; BackendError for a driver or library that it lacks.

    `index` is the GPU's, `load` opens a shared library by name. A build of one's own may not say
    which CUDA it is for: then nothing is looked for.
    """
    version = getattr(module, "cuda_version", "")
    if not version:
        return
    cuda = int(version.split(".")[0])
    gpu.require_gpu(index, cuda)
    with redirect_stdout(io.StringIO()):  # it prints what it does not find
        module.preload_dlls()
    missing = [
        name
        for name in (*(f"{library}.so.{cuda}" for library in _LIBRARIES), *_OTHERS)
        if not _loads(name, load)
    ]
    if missing:
        raise BackendError(
            f"device cuda: onnxruntime {module.__version__} needs CUDA {cuda} and cuDNN 9, and "
            f"{', '.join(missing)} cannot be loaded: run pip install 'cris-deploy[gpu]', or put "
            "the libraries' folder on LD_LIBRARY_PATH"
        )


def _loads(name: str, load: Callable[[str], Any]) -> bool:
    with suppress(OSError):
        load(name)
        return True
    return False
