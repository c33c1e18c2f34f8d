"""A process finds its place, or says what it lacks."""

import pytest
import torch

from cris_deploy.errors import BackendError, InputError
from cris_deploy.execution.backends import Compute
from cris_train.errors import TrainingError
from cris_train.run.course import Course
from cris_train.run.distributed import TORCHRUN, Process, joined
from cris_train.run.recipe import DeviceChoice, TrainConfig

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


def test_auto_says_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with joined(DeviceChoice.AUTO, Compute.FP32) as process:
        assert (process.device, process.rank, process.world, process.writes) == (CPU, 0, 1, True)
        assert "auto: PyTorch finds no GPU" in process.told
    with joined(DeviceChoice.CPU, Compute.FP32) as process:
        assert "auto" not in process.told


def test_no_gpu_is_an_error_not_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with (
        pytest.raises(BackendError, match=r"device: .*finds 0: .*device=cpu"),
        joined(DeviceChoice.CUDA, Compute.FP32),
    ):
        pass


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in zip(TORCHRUN, ("3", "1", "4"), strict=True):
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(BackendError, match="process 1 of this machine"),
        joined(DeviceChoice.AUTO, Compute.FP32),
    ):
        pass


def test_half_of_torchruns_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with (
        pytest.raises(TrainingError, match="RANK, LOCAL_RANK, WORLD_SIZE are"),
        joined(DeviceChoice.CPU, Compute.FP32),
    ):
        pass


def test_shares_are_the_whole() -> None:
    items = list(range(7))
    shares = [Process(CPU, rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items
    assert Process(CPU).all_of(3) == [3]


def test_a_share_must_divide_into_parts() -> None:
    config = TrainConfig(images_per_batch=8, accumulate=8)
    with pytest.raises(InputError, match="accumulate is 8, and a process has 4 images"):
        Course(config, (), Process(CPU, 0, 2))
