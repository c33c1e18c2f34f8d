"""Asking the driver for GPUs, with a driver made of Python."""

import ctypes

import pytest

from cris_deploy.errors import BackendError
from cris_deploy.machine import gpu
from cris_deploy.machine.gpu import Gpu, Survey, require_gpu, survey_gpus, visible_gpus


class FakeDriver:
    """libcuda's calls on a list of (name, major, minor, bytes); `error` comes from `failing`."""

    def __init__(self, *gpus, failing: str = "", error: int = 0) -> None:
        self.gpus, self.failing, self.error = gpus, failing, error
        self.calls: list[str] = []

    def __getattr__(self, function: str):
        if not function.startswith("cu"):
            raise AttributeError(function)

        def call(*arguments) -> int:
            self.calls.append(function)
            if function == self.failing:
                return self.error
            return getattr(self, f"_{function}")(*arguments) or 0

        return call

    def _cuDriverGetVersion(self, version) -> None:
        version._obj.value = 13020

    def _cuInit(self, flags) -> None:
        assert flags == 0

    def _cuDeviceGetCount(self, count) -> None:
        count._obj.value = len(self.gpus)

    def _cuDeviceGet(self, device, index) -> None:
        device._obj.value = 10 + index  # a handle is not an index

    def _cuDeviceGetName(self, name, size, device) -> None:
        assert size == ctypes.sizeof(name)
        name.value = self.gpus[device - 10][0].encode()

    def _cuDeviceGetAttribute(self, value, attribute, device) -> None:
        value._obj.value = self.gpus[device - 10][{75: 1, 76: 2}[attribute]]

    def _cuDeviceTotalMem_v2(self, value, device) -> None:
        value._obj.value = self.gpus[device - 10][3]


def load(driver):
    def open_library(name: str):
        assert name == "libcuda.so.1"
        return driver

    return open_library


def test_names_all_gpus_in_order() -> None:
    driver = FakeDriver(("RTX 3090", 8, 6, 24 << 30), ("RTX 5090", 12, 0, 32 << 30))
    assert visible_gpus(load(driver)) == (
        Gpu("RTX 3090", "sm86", 24 << 30),
        Gpu("RTX 5090", "sm120", 32 << 30),
    )
    assert driver.calls[:2] == ["cuDriverGetVersion", "cuInit"]
    assert survey_gpus(load(driver)).cuda == (13, 2)


def test_without_a_driver_there_is_none_and_a_reason() -> None:
    def missing(name: str):
        raise OSError(f"{name}: cannot open shared object file")

    assert survey_gpus(missing) == Survey((), "there is no NVIDIA driver")
    assert visible_gpus(missing) == ()


@pytest.mark.parametrize(
    ("driver", "problem"),
    [
        (FakeDriver(failing="cuInit", error=100), "the NVIDIA driver shows no GPU"),
        (FakeDriver(), "the NVIDIA driver shows no GPU"),
        (FakeDriver(failing="cuInit", error=803), "cuInit gave CUDA error 803"),
        (
            FakeDriver(("RTX 3090", 8, 6, 1), failing="cuDeviceTotalMem_v2", error=2),
            "cuDeviceTotalMem_v2 gave CUDA error 2",
        ),
        (object(), "has no attribute 'cuDriverGetVersion'"),
    ],
)
def test_a_driver_that_fails_is_no_exception(driver, problem: str) -> None:
    survey = survey_gpus(load(driver))
    assert survey.gpus == ()
    assert survey.problem is not None
    assert problem in survey.problem


def test_asks_the_real_driver_without_raising() -> None:
    survey = survey_gpus()
    assert bool(survey.gpus) == (survey.problem is None)


TWO = (Gpu("NVIDIA H100", "sm90", 80 << 30), Gpu("NVIDIA L4", "sm89", 24 << 30))


def here(monkeypatch, survey: Survey) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu, "survey_gpus", lambda: survey)


def test_a_gpu_by_its_number(monkeypatch) -> None:
    here(monkeypatch, Survey(TWO, None, (13, 0)))
    assert [require_gpu(index, 13) for index in (0, 1)] == list(TWO)
    with pytest.raises(BackendError, match=r"cuda:7: 2 GPUs are here: give cuda:0 to cuda:1$"):
        require_gpu(7)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(gpu, "survey_gpus", lambda: Survey(TWO[1:], None, (13, 0)))
    with pytest.raises(
        BackendError, match=r"one GPU is here \(CUDA_VISIBLE_DEVICES is '1'\): give"
    ):
        require_gpu(1)


def test_no_gpu_is_said_with_the_reason(monkeypatch) -> None:
    here(monkeypatch, Survey((), "there is no NVIDIA driver"))
    with pytest.raises(BackendError, match="device cuda: there is no NVIDIA driver: run on"):
        require_gpu()


def test_hidden_gpus_are_not_a_missing_driver(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    problem = survey_gpus(load(FakeDriver(failing="cuInit", error=100))).problem
    assert problem == "the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES is '')"


@pytest.mark.parametrize(("cuda", "driver"), [(13, "580"), (12, "525"), (14, "of that version")])
def test_an_old_driver_is_named_with_the_one_to_install(monkeypatch, cuda, driver) -> None:
    here(monkeypatch, Survey(TWO, None, (cuda - 1, 8)))
    said = (
        rf"serves CUDA {cuda - 1}\.8 and older.*needs CUDA {cuda}: install driver {driver} or newer"
    )
    with pytest.raises(BackendError, match=said):
        require_gpu(0, cuda)
    here(monkeypatch, Survey(TWO, None, (cuda, 0)))
    assert require_gpu(0, cuda) == TWO[0]  # any driver of a major version serves all of it
