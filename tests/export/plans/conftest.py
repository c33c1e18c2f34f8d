"""Machines to build plans on."""

import sys
from collections.abc import Callable

import pytest

from cris_deploy.machine.gpu import Gpu, Survey
from tests.stand_ins.fake_tensorrt import FakeBuilding


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which GPU this machine has, whose `tensorrt`, and whether TensorRT-RTX."""

    def set_up(gpu: Gpu | None, tensorrt: FakeBuilding | None = None, rtx: bool = True) -> None:
        survey = Survey((gpu,), None) if gpu else Survey((), "there is no NVIDIA driver")
        monkeypatch.setattr("cris_export.plans.choose.survey_gpus", lambda: survey)
        # None in sys.modules makes an import fail as if the package were not installed.
        monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
        if not rtx:
            monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)

    return set_up
