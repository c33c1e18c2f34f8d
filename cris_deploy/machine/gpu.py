"""Which NVIDIA GPUs are here, asked of the driver itself: no package has to be installed for it."""

import ctypes
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cris_deploy.errors import BackendError

_DRIVER = "libcuda.so.1"
_NAME_BYTES = 256
# CUdevice_attribute in cuda.h
_MAJOR: Final = 75
_MINOR: Final = 76
_NO_DEVICE: Final = 100  # CUDA_ERROR_NO_DEVICE
# The first driver of each major version of CUDA, which serves all its minor ones.
_DRIVERS: Final[Mapping[int, str]] = {12: "525", 13: "580"}


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
    """The GPUs in CUDA's order; `problem` says why there are none, if there are none.

    `cuda` is the newest version of CUDA that the driver serves, (major, minor).
    """

    gpus: tuple[Gpu, ...]
    problem: str | None
    cuda: tuple[int, int] | None = None


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
    cuda = None
    try:
        version = _number(driver, "cuDriverGetVersion")  # 13020 for 13.2
        cuda = (version // 1000, version % 1000 // 10)
        return Survey(_gpus(driver), None, cuda)
    except _DriverError as error:
        if error.code == _NO_DEVICE:
            return Survey((), f"the NVIDIA driver shows no GPU{_visible()}", cuda)
        return Survey((), f"the NVIDIA driver is not usable ({error})", cuda)
    except AttributeError as error:  # a driver, or a stub of one, that lacks a function
        return Survey((), f"the NVIDIA driver is not usable ({error})", cuda)


def require_gpu(index: int = 0, cuda: int | None = None) -> Gpu:
    """Give the GPU of an index in CUDA's order; BackendError says what is missing.

    cuda: the major version of CUDA that the driver has to serve.
    """
    survey = survey_gpus()
    if not survey.gpus:
        raise BackendError(
            f"device cuda: {survey.problem}: run on a machine with one, or take device cpu"
        )
    if index >= len(survey.gpus):
        count = len(survey.gpus)
        raise BackendError(
            f"device cuda:{index}: {'one GPU is' if count == 1 else f'{count} GPUs are'} "
            f"here{_visible()}: give cuda:0" + (f" to cuda:{count - 1}" if count > 1 else "")
        )
    if cuda is not None and survey.cuda is not None and survey.cuda[0] < cuda:
        served = ".".join(map(str, survey.cuda))
        raise BackendError(
            f"device cuda: the NVIDIA driver serves CUDA {served} and older, and what is installed "
            f"here needs CUDA {cuda}: install driver {_DRIVERS.get(cuda, 'of that version')} or "
            "newer, or take device cpu"
        )
    return survey.gpus[index]


def _visible() -> str:
    """What hides GPUs from this process, for a message."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"


class _DriverError(Exception):
    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{function} gave CUDA error {code}")
        self.code = code


def _call(driver: Any, function: str, *arguments: object) -> None:
    code = int(getattr(driver, function)(*arguments))
    if code != 0:
        raise _DriverError(function, code)


def _number(driver: Any, function: str, *arguments: object) -> int:
    value = ctypes.c_int()
    _call(driver, function, ctypes.byref(value), *arguments)
    return value.value


def _gpus(driver: Any) -> tuple[Gpu, ...]:
    _call(driver, "cuInit", 0)
    gpus = []
    for index in range(_number(driver, "cuDeviceGetCount")):
        device = _number(driver, "cuDeviceGet", index)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        _call(driver, "cuDeviceGetName", name, _NAME_BYTES, device)
        major = _number(driver, "cuDeviceGetAttribute", _MAJOR, device)
        minor = _number(driver, "cuDeviceGetAttribute", _MINOR, device)
        memory = ctypes.c_size_t()
        _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        gpus.append(Gpu(name.value.decode(errors="replace"), f"sm{major}{minor}", memory.value))
    if not gpus:
        raise _DriverError("cuDeviceGetCount", _NO_DEVICE)
    return tuple(gpus)
