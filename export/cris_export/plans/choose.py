"""What builds plans here: TensorRT for the GPU at hand, or TensorRT-RTX for GPUs that are named."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cris_deploy.bundle.plans import RuntimeName
from cris_deploy.errors import BackendError, InputError, one_line
from cris_deploy.machine.gpu import Gpu, Survey, survey_gpus
from cris_export.plans.options import PlanKind, PlanOptions

_INSTALL = {
    RuntimeName.TENSORRT: "pip install 'cris-deploy[tensorrt]'",
    RuntimeName.TENSORRT_RTX: "pip install 'cris-deploy[tensorrt-rtx]'",
}
_MODULES = {RuntimeName.TENSORRT: "tensorrt", RuntimeName.TENSORRT_RTX: "tensorrt_rtx"}
# The first whose strongly typed networks accept all that the exported graphs have, and the first
# whose plans can be captured in CUDA graphs.
_OLDEST = {RuntimeName.TENSORRT: (10, 13), RuntimeName.TENSORRT_RTX: (1, 2)}


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


def supported_targets(trt: Any) -> tuple[str, ...]:
    """Name the compute capabilities that TensorRT-RTX can build for without such a GPU."""
    names = (name.lower() for name in trt.ComputeCapability.__members__)
    return tuple(sorted((n for n in names if re.fullmatch(r"sm\d+", n)), key=lambda n: int(n[2:])))


def _import_runtime(name: RuntimeName) -> ModuleType:
    """Import `tensorrt` or `tensorrt_rtx`; BackendError if it is missing, broken or too old."""
    try:
        module = importlib.import_module(_MODULES[name])
    except (ImportError, OSError) as error:  # OSError: a library of it cannot be opened
        raise BackendError(
            f"--engine {name}: it cannot be imported ({one_line(error)}): run {_INSTALL[name]}"
        ) from None
    numbers = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
    if numbers < _OLDEST[name]:
        raise BackendError(
            f"--engine {name}: version {module.__version__} is installed, at least "
            f"{'.'.join(map(str, _OLDEST[name]))} is needed: run {_INSTALL[name]} -U"
        )
    return module


def _choose_tensorrt(options: PlanOptions, survey: Survey) -> Builder:
    module = _import_runtime(RuntimeName.TENSORRT)
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
    module = _import_runtime(RuntimeName.TENSORRT_RTX)
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
