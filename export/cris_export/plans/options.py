"""Which plans of a bundle to build."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cris_deploy.errors import InputError


class PlanKind(StrEnum):
    """Whose plans to build, as `--engine` names it."""

    AUTO = "auto"
    NONE = "none"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


@dataclass(frozen=True)
class PlanOptions:
    """Which plans to build.

    Attributes:
        kind: Whose plans; `auto` takes those for the GPU that is present.
        targets: Compute capabilities such as "sm86" that TensorRT-RTX builds for, GPU or none.
        max_batch: Most images, or pairs of image and expression, in one run.
        max_expressions: Most expressions on one image in one run.
        version_compatible: Plans for later versions, too (TensorRT).
        hardware_compatible: Plans for all GPUs from Ampere on, somewhat slower (TensorRT).
        timing_cache: File of kernel timings to read and to extend (TensorRT).
        workspace_mib: Most scratch memory of a layer in MiB; None leaves it to the builder.
    """

    kind: PlanKind = PlanKind.AUTO
    targets: tuple[str, ...] = ()
    max_batch: int = 8
    max_expressions: int = 32
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None
    workspace_mib: int | None = None

    def __post_init__(self) -> None:
        for flag, value in (
            ("--max-batch", self.max_batch),
            ("--max-expressions", self.max_expressions),
            ("--workspace", self.workspace_mib),
        ):
            if value is not None and value < 1:
                raise InputError(f"{flag} must be at least 1, not {value}")
        for target in self.targets:
            if not re.fullmatch(r"sm[1-9]\d+", target):
                raise InputError(
                    f"--target {target!r}: give compute capabilities such as sm86,sm120"
                )
            if self.targets.count(target) > 1:
                raise InputError(f"--target names {target} twice: name it once")
        flags = ", ".join(("--target",) * bool(self.targets) + self.tensorrt_flags)
        if self.kind is PlanKind.NONE and flags:
            raise InputError(f"{flags}: --engine none builds nothing; drop one or the other")

    @property
    def named(self) -> bool:
        """True if plans were asked for, not merely those that fit this machine."""
        return self.kind is not PlanKind.AUTO or bool(self.targets or self.tensorrt_flags)

    @property
    def tensorrt_flags(self) -> tuple[str, ...]:
        """The given flags that only `tensorrt` can follow."""
        given = (
            ("--version-compatible", self.version_compatible),
            ("--hardware-compatible", self.hardware_compatible),
            ("--timing-cache", self.timing_cache is not None),
        )
        return tuple(flag for flag, value in given if value)


NO_PLANS = PlanOptions(PlanKind.NONE)
