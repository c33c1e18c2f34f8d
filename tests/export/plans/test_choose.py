"""Which plans can be asked for, and what builds them here."""

import dataclasses
from pathlib import Path

import pytest

from cris_deploy.bundle.plans import RuntimeName
from cris_deploy.errors import BackendError, InputError
from cris_deploy.machine.gpu import Gpu
from cris_export.plans.choose import choose_builder
from cris_export.plans.options import PlanKind, PlanOptions
from tests.stand_ins.fake_tensorrt import FakeBuilding

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

H100 = Gpu("NVIDIA H100 80GB HBM3", "sm90", 80 << 30)
RTX_3090 = Gpu("NVIDIA GeForce RTX 3090", "sm86", 24 << 30)
TENSORRT = PlanOptions(PlanKind.TENSORRT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("8.6",)}, "--target '8.6': give compute capabilities such as sm86"),
        ({"targets": ("sm86", "sm86")}, "--target names sm86 twice"),
        ({"max_batch": 0}, "--max-batch must be at least 1, not 0"),
        ({"max_expressions": -1}, "--max-expressions must be at least 1"),
        ({"workspace_mib": 0}, "--workspace must be at least 1"),
        (
            {"kind": PlanKind.NONE, "targets": ("sm86",), "version_compatible": True},
            "--target, --version-compatible: --engine none builds nothing",
        ),
    ],
)
def test_options_that_cannot_be_used_name_the_flag(options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PlanOptions(**options)


@pytest.mark.parametrize(
    ("gpu", "installed", "targets", "chosen"),
    [
        (H100, "both", (), ("tensorrt", ("sm90",))),
        (H100, "both", ("sm90",), ("tensorrt", ("sm90",))),
        (H100, "both", ("sm120", "sm86"), ("tensorrt-rtx", ("sm86", "sm120"))),
        (RTX_3090, "both", (), ("tensorrt", ("sm86",))),
        (RTX_3090, "rtx", (), ("tensorrt-rtx", ("sm86",))),
        (RTX_3090, "rtx", ("sm86",), ("tensorrt-rtx", ("sm86",))),
        (None, "both", ("sm89",), ("tensorrt-rtx", ("sm89",))),
    ],
)
def test_auto_takes_the_builder_for_the_gpu_or_for_the_targets(
    here, gpu: Gpu | None, installed: str, targets: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    here(gpu, FakeBuilding() if installed == "both" else None)
    choice = choose_builder(PlanOptions(targets=targets), pytest.fail)
    assert choice is not None
    assert (choice.runtime, choice.targets) == chosen
    assert choice.gpu == (gpu if choice.runtime is RuntimeName.TENSORRT else None)
    assert choice.runs_here == (gpu is not None and gpu.compute_capability in choice.targets)


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        (None, ["there is no NVIDIA driver", "no --target names GPUs"]),
        (H100, ["NVIDIA H100", "cris-deploy[tensorrt]", "builds for sm75, sm80"]),
    ],
)
def test_auto_that_builds_nothing_says_why(here, gpu: Gpu | None, reason: list[str]) -> None:
    here(gpu)
    said: list[str] = []
    assert choose_builder(PlanOptions(), said.append) is None
    assert len(said) == 1
    assert said[0].startswith("no plan is built")
    assert all(part in said[0] for part in reason)


@pytest.mark.parametrize(
    ("gpu", "tensorrt", "options", "error", "message"),
    [
        (H100, None, {}, BackendError, r"--engine tensorrt: .* run pip install 'cris-deploy\["),
        (H100, "10.3.0", {}, BackendError, "version 10.3.0 is installed, at least 10.13"),
        (None, "11.0.0", {}, BackendError, "needs the GPU it builds for, and there is no NVIDIA"),
        (H100, "11.0.0", {"targets": ("sm86",)}, InputError, r"builds for the GPU at hand, .*sm90"),
        (
            Gpu("Tesla T4", "sm75", 1),
            "11.0.0",
            {"hardware_compatible": True},
            InputError,
            r"--hardware-compatible starts with Ampere .* Tesla T4 \(sm75\)",
        ),
    ],
)
def test_tensorrt_by_name_that_cannot_be_had(here, gpu, tensorrt, options, error, message) -> None:
    here(gpu, tensorrt and FakeBuilding(tensorrt))
    with pytest.raises(error, match=message):
        choose_builder(dataclasses.replace(TENSORRT, **options), pytest.fail)


@pytest.mark.parametrize(
    ("gpu", "rtx", "options", "error", "message"),
    [
        (None, False, {"targets": ("sm86",)}, BackendError, r"cris-deploy\[tensorrt-rtx\]"),
        (None, True, {}, InputError, "--target, some of sm75, sm80, sm86, sm89, sm120, sm121"),
        (None, True, {"targets": ("sm86", "sm90")}, InputError, "--target sm90: .* for sm75, sm80"),
        (H100, True, {}, BackendError, r"here is NVIDIA H100 .*: take --engine tensorrt"),
        (None, True, {"timing_cache": Path("x")}, InputError, "--timing-cache: only --engine tens"),
        (
            None,
            True,
            {"version_compatible": True, "hardware_compatible": True},
            InputError,
            "--version-compatible, --hardware-compatible: only --engine tensorrt has that",
        ),
    ],
)
def test_rtx_by_name_that_cannot_be_had(here, gpu, rtx, options, error, message) -> None:
    here(gpu, rtx=rtx)
    with pytest.raises(error, match=message):
        choose_builder(PlanOptions(PlanKind.TENSORRT_RTX, **options), pytest.fail)


def test_auto_with_flags_of_tensorrt_does_not_take_another_builder(here) -> None:
    options = PlanOptions(version_compatible=True)
    here(RTX_3090)
    with pytest.raises(BackendError, match="--engine tensorrt: it cannot be imported"):
        choose_builder(options, pytest.fail)
    here(None, FakeBuilding())
    with pytest.raises(BackendError, match=r"--version-compatible: .* there is no NVIDIA driver"):
        choose_builder(options, pytest.fail)
