"""CUDA's runtime through cuda-python: every status is checked, every failure is a BackendError."""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from cris_deploy.errors import BackendError

INSTALL: Final = "pip install 'cuda-bindings>=12.8'"

_SUCCESS = 0
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_MEBIBYTE = 1 << 20


class Cuda:
    """The functions of `cuda.bindings.runtime`, by name, without their statuses.

    `uint64` makes the 64-bit values that some of them take.
    """

    def __init__(self, runtime: Any, uint64: Callable[[int], Any]) -> None:
        self.names: Final = runtime
        self.uint64: Final = uint64

    def call(self, function: str, *arguments: object) -> Any:
        """Call a function; give what it gives beside its status (a tuple if several).

        Raises BackendError, which says "out of memory" if it is that.
        """
        status, *values = getattr(self.names, function)(*arguments)
        if int(status) != _SUCCESS:
            raise self._failure(function, status)
        return values[0] if len(values) == 1 else tuple(values)

    def try_call(self, function: str, *arguments: object) -> bool:
        """Call a function for its effect where a failure has no one to go to; True if it worked."""
        try:
            worked = int(getattr(self.names, function)(*arguments)[0]) == _SUCCESS
            if not worked:  # the kernels look at the last error, which must be their own
                self.names.cudaGetLastError()
        except Exception:  # at the interpreter's end cuda-python itself is half gone
            return False
        return worked

    def allocate(self, size: int, pool: object, stream: int) -> int | None:
        """Allocate `size` bytes in the order of a stream; None if there is not that much."""
        status, pointer = self.names.cudaMallocFromPoolAsync(size, pool, stream)
        if int(status) == _OUT_OF_MEMORY:
            self.names.cudaGetLastError()
            return None
        if int(status) != _SUCCESS:
            raise self._failure("cudaMallocFromPoolAsync", status)
        return int(pointer)

    def out_of_memory(self, wanted: int | None = None) -> BackendError:
        """Make the error for a GPU that has no memory left; `wanted` is in bytes."""
        left = ""
        status, *values = self.names.cudaMemGetInfo()
        if int(status) == _SUCCESS:
            free, total = (value // _MEBIBYTE for value in values)
            left = f", {free:,} of {total:,} MiB are free"
        asked = "" if wanted is None else f" for {wanted / _MEBIBYTE:,.1f} MiB more"
        return BackendError(
            f"the GPU is out of memory{asked}{left}: use smaller batches, fewer streams or smaller "
            "caches, or end other programs on it"
        )

    def _failure(self, function: str, status: Any) -> BackendError:
        name, text = (
            value.decode(errors="replace") if isinstance(value, bytes) else str(value)
            for value in (
                self.names.cudaGetErrorName(status)[1],
                self.names.cudaGetErrorString(status)[1],
            )
        )
        self.names.cudaGetLastError()  # the kernels look at the last error: it must be their own
        if int(status) == _OUT_OF_MEMORY:
            return self.out_of_memory()
        return BackendError(
            f"CUDA failed in {function}: {name} ({text}): if the next call fails too, the GPU is "
            "lost to this process, so start it again"
        )


@cache
def load_cuda() -> Cuda:
    """Import cuda-python's runtime; BackendError if it is not installed. Touches no device."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        return Cuda(importlib.import_module("cuda.bindings.runtime"), driver.cuuint64_t)
    except ImportError as error:
        raise BackendError(
            f"device cuda: cuda-python cannot be imported ({error}): run {INSTALL}"
        ) from None
