"""What builds plans here: TensorRT for the GPU at hand, or TensorRT-RTX for GPUs that are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from cris_deploy.bundle.plans import RuntimeName
from cris_deploy.errors import BackendError, InputError
from cris_deploy.machine.gpu import Gpu, Survey, survey_gpus
from cris_export.plans.builder import import_runtime, supported_targets
from cris_export.plans.options import PlanKind, PlanOptions


@dataclass(frozen=True)
class Builder:
    """What builds the plans, and for which GPUs.

    Attributes:
        runtime: Whose plans.
        module: `tensorrt` or `tensorrt_rtx`.
        targets: Compute capabilities, ascending.
        gpu: The GPU that kernels are timed on; None where none is needed.
        runs_here: Whether the first GPU here can run the plans.
    """

    runtime: RuntimeName
    module: ModuleType
    targets: tuple[str, ...]
    gpu: Gpu | None
    runs_here: bool

    @property
    def version(self) -> str:
        """Exact version of the runtime."""
        return str(self.module.__version__)

    def __str__(self) -> str:
        what = f"{self.runtime} {self.version} plans for {', '.join(self.targets)}"
        return what if self.gpu is None else f"{what} on {self.gpu.name}"


def choose_builder(options: PlanOptions, step: Callable[[str], None]) -> Builder | None:
    """Choose builder and GPUs; None if no plan is to be built, and `step` says why.

    Cheap, so it can be asked before an export starts.

    Raises:
        InputError: the builder cannot do what a flag asks.
        BackendError: what was asked for by name cannot be had here.
    """
    if options.kind is PlanKind.NONE:
        return None
    survey = survey_gpus()
    if options.kind is PlanKind.TENSORRT:
        return _choose_tensorrt(options, survey)
    if options.kind is PlanKind.TENSORRT_RTX:
        return _choose_rtx(options, survey)
    return _choose_auto(options, survey, step)


def _choose_tensorrt(options: PlanOptions, survey: Survey) -> Builder:
    module = import_runtime(RuntimeName.TENSORRT)
    if not survey.gpus:
        raise BackendError(
            f"--engine tensorrt needs the GPU it builds for, and {survey.problem}: run it on the "
            "machine that will serve, or name GPUs to --engine tensorrt-rtx with --target"
        )
    gpu = survey.gpus[0]
    here = (gpu.compute_capability,)
    if options.targets and options.targets != here:
        raise InputError(
            f"--target {','.join(options.targets)}: --engine tensorrt builds for the GPU at hand, "
            f"{gpu.name} ({here[0]}): drop --target, or take --hardware-compatible instead, or "
            "--engine tensorrt-rtx"
        )
    if options.hardware_compatible and int(here[0][2:]) < 80:
        raise InputError(
            f"--hardware-compatible starts with Ampere (sm80), here is {gpu.name} ({here[0]}): "
            "drop it"
        )
    return Builder(RuntimeName.TENSORRT, module, here, gpu, runs_here=True)


def _choose_rtx(options: PlanOptions, survey: Survey) -> Builder:
    module = import_runtime(RuntimeName.TENSORRT_RTX)
    if options.tensorrt_flags:
        raise InputError(
            f"{', '.join(options.tensorrt_flags)}: only --engine tensorrt has that. TensorRT-RTX "
            "plans run with the release that built them, on the GPUs that --target names, and no "
            "kernel is timed to build them"
        )
    supported = supported_targets(module)
    listed = ", ".join(supported)
    for target in options.targets:
        if target not in supported:
            raise InputError(
                f"--target {target}: TensorRT-RTX {module.__version__} builds for {listed}; for "
                "other GPUs run --engine tensorrt on them"
            )
    gpu = survey.gpus[0] if survey.gpus else None
    if options.targets:
        targets = tuple(sorted(options.targets, key=lambda target: int(target[2:])))
    elif gpu is None:
        raise InputError(
            f"--engine tensorrt-rtx: {survey.problem}, so name the GPUs to build for with "
            f"--target, some of {listed}"
        )
    elif gpu.compute_capability not in supported:
        raise BackendError(
            f"--engine tensorrt-rtx: version {module.__version__} builds for {listed}, here is "
            f"{gpu.name} ({gpu.compute_capability}): take --engine tensorrt"
        )
    else:
        targets = (gpu.compute_capability,)
    runs_here = gpu is not None and gpu.compute_capability in targets
    return Builder(RuntimeName.TENSORRT_RTX, module, targets, None, runs_here)


def _choose_auto(
    options: PlanOptions, survey: Survey, step: Callable[[str], None]
) -> Builder | None:
    gpu = survey.gpus[0] if survey.gpus else None
    if gpu is None and not options.targets:
        if options.tensorrt_flags:
            raise BackendError(
                f"{', '.join(options.tensorrt_flags)}: only --engine tensorrt has that, it needs "
                f"the GPU it builds for, and {survey.problem}: run it on the machine that will "
                "serve, or drop the flag"
            )
        step(
            f"no plan is built: {survey.problem}, and no --target names GPUs to build for with "
            "TensorRT-RTX"
        )
        return None
    if options.targets and (gpu is None or options.targets != (gpu.compute_capability,)):
        return _choose_rtx(options, survey)
    try:
        return _choose_tensorrt(options, survey)
    except BackendError as error:
        if options.tensorrt_flags:
            raise
        missing = error
    try:
        return _choose_rtx(options, survey)
    except BackendError as error:
        if options.targets:
            raise
        assert gpu is not None
        step(f"no plan is built for {gpu.name} ({gpu.compute_capability}): {missing}; {error}")
        return None
