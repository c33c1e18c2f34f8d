"""Which NVIDIA GPUs are here, asked of the driver itself: no package has to be installed for it."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

_DRIVER = "libcuda.so.1"
_NAME_BYTES = 256
# CUdevice_attribute in cuda.h
_MAJOR: Final = 75
_MINOR: Final = 76
_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that CUDA shows to this process.

    `compute_capability` is written as NVIDIA's compilers do, "sm86" for 8.6.
    """

    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Survey:
    """The GPUs in CUDA's order; `problem` says why there are none, if there are none."""

    gpus: tuple[Gpu, ...]
    problem: str | None


def visible_gpus(load: Callable[[str], Any] = ctypes.CDLL) -> tuple[Gpu, ...]:
    """Name the GPUs in CUDA's order (CUDA_VISIBLE_DEVICES counts); none where there is no driver.

    `load` opens a shared library by name. The first call initialises CUDA in this process, after
    which its forked children cannot use CUDA.
    """
    return survey_gpus(load).gpus


def survey_gpus(load: Callable[[str], Any] = ctypes.CDLL) -> Survey:
    """Name the GPUs as `visible_gpus` does, and why there are none. Never raises."""
    try:
        driver = load(_DRIVER)
    except OSError:
        return Survey((), "there is no NVIDIA driver")
    try:
        return Survey(_gpus(driver), None)
    except _DriverError as error:
        if error.code == _NO_DEVICE:
            return Survey((), "the NVIDIA driver shows no GPU")
        return Survey((), f"the NVIDIA driver is not usable ({error})")
    except AttributeError as error:  # a driver, or a stub of one, that lacks a function
        return Survey((), f"the NVIDIA driver is not usable ({error})")


class _DriverError(Exception):
    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} gave CUDA error {code}")
        self.code = code


def _gpus(driver: Any) -> tuple[Gpu, ...]:
    def call(function: str, *arguments: object) -> None:
        code = int(getattr(driver, function)(*arguments))
        if code != 0:
            raise _DriverError(function, code)

    def number(function: str, *arguments: object) -> int:
        value = ctypes.c_int()
        call(function, ctypes.byref(value), *arguments)
        return value.value

    call("cuInit", 0)
    gpus = []
    for index in range(number("cuDeviceGetCount")):
        device = number("cuDeviceGet", index)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        call("cuDeviceGetName", name, _NAME_BYTES, device)
        major = number("cuDeviceGetAttribute", _MAJOR, device)
        minor = number("cuDeviceGetAttribute", _MINOR, device)
        memory = ctypes.c_size_t()
        call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        gpus.append(Gpu(name.value.decode(errors="replace"), f"sm{major}{minor}", memory.value))
    if not gpus:
        raise _DriverError("cuDeviceGetCount", _NO_DEVICE)
    return tuple(gpus)
