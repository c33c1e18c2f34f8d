"""The parity gate: an export is handed over only if it gives the checkpoint's masks."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cris_deploy.backends import AUTO, CACHE_VARIABLE, BackendName, Device, status
from cris_deploy.check import CheckReport, SampleCheck, check, worst_stage
from cris_deploy.errors import BackendError
from cris_deploy.manifest import GraphName, Parity

# It runs a graph in the types that the graph has, and on every machine: others may compute a
# float16 graph in float32, and prove nothing about float16.
REFERENCE = (BackendName.ONNXRUNTIME, Device.CPU)


@dataclass(frozen=True)
class ParityReport:
    """What the backends of this machine made of an export.

    Attributes:
        min_iou: The budget for the mean mask IoU.
        required: Reports that have to pass: of the reference runtime, and of what `auto` takes.
        others: Reports of other backends that are installed here; a failure is a warning.
        unproved: Backends that are installed and could not run here, and why.
    """

    min_iou: float
    required: tuple[CheckReport, ...]
    others: tuple[CheckReport, ...]
    unproved: tuple[str, ...]

    @property
    def reports(self) -> tuple[CheckReport, ...]:
        """All of them, those that have to pass first."""
        return (*self.required, *self.others)

    @property
    def failures(self) -> tuple[CheckReport, ...]:
        """Required reports that did not pass."""
        return tuple(report for report in self.required if not report.passed)

    @property
    def worst_stages(self) -> tuple[GraphName, ...]:
        """The stages to blame for the failures."""
        worst = (worst_stage(report.stages) for report in self.failures)
        return tuple({stage.stage: None for stage in worst if stage is not None})

    @property
    def passed(self) -> bool:
        """True if all that is required passed."""
        return not self.failures

    @property
    def samples(self) -> tuple[SampleCheck, ...]:
        """Every sample by every required way."""
        return tuple(sample for report in self.required for sample in report.samples)

    @property
    def mean_iou(self) -> float:
        """Mean mask IoU of the worst route of the worst required backend."""
        return min(route.mean_iou for report in self.required for route in report.routes)

    @property
    def worst(self) -> SampleCheck:
        """The sample with the lowest mask IoU."""
        return min(self.samples, key=lambda sample: sample.iou)

    def record(self) -> Parity:
        """Give the manifest's record, of a gate that passed."""
        errors = [sample.logit_error for sample in self.samples]
        return Parity(
            min_iou=self.min_iou,
            mean_iou=self.mean_iou,
            worst_iou=self.worst.iou,
            max_logit_error=max(error for error in errors if error is not None),
            passed=self.passed,
            proofs=tuple(report.proof(required=report in self.required) for report in self.reports),
        )


def require_reference() -> None:
    """Raise BackendError if the reference runtime is missing, before an export has cost minutes."""
    if importlib.util.find_spec(REFERENCE[0]) is None:
        raise BackendError(
            f"the parity gate runs every export with {REFERENCE[0]}, which is not installed: run "
            f"{status(REFERENCE[0]).install}"
        )


def prove(
    bundle: Path, min_iou: float, step: Callable[[str], None] = lambda _: None
) -> ParityReport:
    """Run a complete bundle's samples with every backend that is installed here.

    The reference runtime and the backend that `auto` takes here, each in the arithmetic that `auto`
    takes, have to pass. The files' hashes are not checked: they were computed just before.

    Raises:
        BackendError: one of these two cannot run the bundle.
    """

    def run(backend: str, device: str) -> CheckReport:
        return check(
            bundle, backend=backend, device=device, min_iou=min_iou, verify=False, step=step
        )

    with _no_cache():
        taken = run(AUTO, AUTO)
        required = (taken,) if _place(taken) == REFERENCE else (run(*REFERENCE), taken)
        known = {_place(report) for report in required}
        others, unproved = [], []
        for name in BackendName:
            for device in status(name).devices:
                if (name, device) in known:
                    continue
                try:
                    others.append(run(name, device))
                except BackendError as error:
                    unproved.append(f"{name} on {device}: {error}")
    return ParityReport(min_iou, required, tuple(others), tuple(unproved))


def _place(report: CheckReport) -> tuple[BackendName, Device]:
    return report.choice.backend, report.choice.device


@contextmanager
def _no_cache() -> Iterator[None]:
    """Keep compiled graphs out of the user's folder: this bundle may not come to be."""
    before = os.environ.get(CACHE_VARIABLE)
    os.environ[CACHE_VARIABLE] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE_VARIABLE]
        else:
            os.environ[CACHE_VARIABLE] = before
