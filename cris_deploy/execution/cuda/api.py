"""CUDA through cuda-core: every failure is a BackendError that says what has happened."""

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final, TypeVar

from cris_deploy.errors import BackendError

INSTALL: Final = "pip install 'cuda-core>=1.1' 'cuda-bindings>=13.0,<14'"

_T = TypeVar("_T")
_OUT_OF_MEMORY: Final = "CUDA_ERROR_OUT_OF_MEMORY"
_NAME = re.compile(r"CUDA_ERROR_\w+")
_MEBIBYTE = 1 << 20

STICKY: Final = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "ASSERT",
        "CONTAINED",
        "CONTEXT_IS_DESTROYED",
        "ECC_UNCORRECTABLE",
        "HARDWARE_STACK_ERROR",
        "ILLEGAL_ADDRESS",
        "ILLEGAL_INSTRUCTION",
        "INVALID_ADDRESS_SPACE",
        "INVALID_PC",
        "LAUNCH_FAILED",
        "LAUNCH_TIMEOUT",
        "MISALIGNED_ADDRESS",
        "MPS_CLIENT_TERMINATED",
        "NVLINK_UNCORRECTABLE",
        "TENSOR_MEMORY_LEAK",
    )
)
"""After one of these the context gives nothing but errors: the process has to be started again."""


class OutOfMemoryError(BackendError):
    """A GPU has no memory left."""


class Cuda:
    """`cuda.core`, and the functions of the driver that it does not have."""

    def __init__(self, core: Any, driver: Any) -> None:
        self.core: Final = core
        self._driver = driver

    def run(self, function: Callable[..., _T], *arguments: Any, **named: Any) -> _T:
        """Call something of `cuda.core`; BackendError says what failed, and how badly."""
        try:
            return function(*arguments, **named)
        except Exception as error:  # CUDAError, which has no public name, and what bindings raise
            raise self._failure(getattr(function, "__qualname__", "cuda.core"), error) from None

    def call(self, function: str, *arguments: object) -> Any:
        """Call a function of the driver; give what it gives beside its status (a tuple if several).

        Raises BackendError, which says "out of memory" if it is that.
        """
        status, *values = getattr(self._driver, function)(*arguments)
        if int(status):
            raise self._failure(function, status.name)
        return values[0] if len(values) == 1 else tuple(values)

    def free_bytes(self, index: int = 0) -> int:
        """Count the free memory of a GPU."""
        return self.memory(index)[0]

    def memory(self, index: int) -> tuple[int, int]:
        """Count the free and all bytes of a GPU's memory, over all processes."""
        with self.on_device(index):
            free, total = self.call("cuMemGetInfo")
        return int(free), int(total)

    def keep_free_memory(self, pool: Any) -> None:
        """Let a pool of the driver keep all that is freed, until it is trimmed."""
        attribute = self._driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        wanted = self._driver.cuuint64_t((1 << 64) - 1)
        self.call("cuMemPoolSetAttribute", pool, attribute, wanted)

    def stream(self, handle: int) -> Any:
        """Give `cuda.core`'s view of a stream that is another's."""
        core = self.core
        if handle in (0, 1):
            return core.LEGACY_DEFAULT_STREAM
        return core.PER_THREAD_DEFAULT_STREAM if handle == 2 else core.Stream.from_handle(handle)

    @contextmanager
    def on_device(self, index: int) -> Iterator[None]:
        """Have a GPU current in this thread for a while: events are made on the current one."""
        before = self._current()
        self.run(lambda: self.core.Device(index).set_current())
        try:
            yield
        except BaseException:
            with suppress(BackendError):  # what failed first is what is told
                self._go_back(before)
            raise
        self._go_back(before)

    def out_of_memory(self, wanted: int | None = None) -> OutOfMemoryError:
        """Make the error for a GPU that has no memory left; `wanted` is in bytes."""
        left = ""
        status, *values = self._driver.cuMemGetInfo()
        if not int(status):
            free, total = (value // _MEBIBYTE for value in values)
            left = f", {free:,} of {total:,} MiB are free"
        asked = "" if wanted is None else f" for {wanted / _MEBIBYTE:,.1f} MiB more"
        return OutOfMemoryError(
            f"the GPU is out of memory{asked}{left}: use smaller batches, fewer streams or smaller "
            "caches, or end other programs on it"
        )

    def _go_back(self, before: int) -> None:
        if self._current() != before:
            self._driver.cuCtxSetCurrent(before)

    def _current(self) -> int:
        return int(self.call("cuCtxGetCurrent") or 0)

    def _failure(self, what: str, error: object) -> BackendError:
        text = " ".join(str(error).split())
        found = _NAME.search(text)
        if found is None:
            return BackendError(f"CUDA failed in {what}: {text}")
        name = found.group()
        if name == _OUT_OF_MEMORY:
            return self.out_of_memory()
        _, meaning = self._driver.cuGetErrorString(getattr(self._driver.CUresult, name))
        shown = meaning.decode(errors="replace") if meaning else "unknown to this driver"
        lost = ": the GPU is lost to this process, start it again" if name in STICKY else ""
        return BackendError(f"CUDA failed in {what}: {name} ({shown}){lost}")


@cache
def load_cuda() -> Cuda:
    """Import cuda-core; BackendError if it is not installed. Touches no device."""
    try:
        core = importlib.import_module("cuda.core")
        return Cuda(core, importlib.import_module("cuda.bindings.driver"))
    except ImportError as error:
        raise BackendError(
            f"device cuda: cuda-core cannot be imported ({error}): run {INSTALL}"
        ) from None
