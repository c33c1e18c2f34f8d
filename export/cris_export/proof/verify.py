"""The parity gate: an export is handed over only if it gives the checkpoint's masks."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cris_deploy.bundle.manifest import GraphName, Parity, RouteParity
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError, one_line
from cris_deploy.execution.backends import (
    AUTO,
    CACHE_VARIABLE,
    BackendName,
    Compute,
    Device,
    parse_names,
    status,
)
from cris_deploy.machine import gpu
from cris_deploy.proof.check import CheckReport, check
from cris_deploy.proof.gate import Bound, SampleCheck, logit_budgets, worst_stage

# It runs a graph in the types that the graph has, and on every machine: others may compute a
# float16 graph in float32, and prove nothing about float16.
REFERENCE = (BackendName.ONNXRUNTIME, Device.CPU)


@dataclass(frozen=True)
class Asked:
    """What is to prove an export beside the reference runtime, as `Engine` takes it.

    InputError if a name is unknown.

    Attributes:
        backend: A backend's name, or "auto".
        device: A device's name, or "auto".
        precision: The arithmetic, or "auto".
    """

    backend: str = AUTO
    device: str = AUTO
    precision: str = AUTO

    def __post_init__(self) -> None:
        parse_names(self.backend, self.device, self.precision)

    @property
    def named(self) -> bool:
        """True if anything was asked for by name."""
        return (self.backend, self.device, self.precision) != (AUTO, AUTO, AUTO)

    def __str__(self) -> str:
        given = {"backend": self.backend, "device": self.device, "precision": self.precision}
        return " ".join(f"--{name} {value}" for name, value in given.items() if value != AUTO)


NOTHING_ASKED = Asked()


@dataclass(frozen=True)
class ParityReport:
    """What the backends of this machine made of an export.

    Attributes:
        min_iou: The budget for the mean mask IoU.
        max_logit_error: The budget for the logits that was asked for; None for the defaults.
        required: Reports that have to pass: of the reference runtime, and of what `auto` takes or
            what was asked for by name.
        others: Reports of other backends that are installed here; a failure is a warning.
        unproved: What is installed, was not asked for and failed here, and why.
    """

    min_iou: float
    max_logit_error: float | None
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
    def missed(self) -> frozenset[Bound]:
        """The bounds that were missed by what is required."""
        return frozenset(report.missed for report in self.failures if report.missed is not None)

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
    def routes(self) -> tuple[RouteParity, ...]:
        """Every required way."""
        return tuple(route for report in self.required for route in report.routes)

    @property
    def mean_iou(self) -> float:
        """Mean mask IoU of the worst route of the worst required backend."""
        return min(route.mean_iou for route in self.routes)

    @property
    def worst(self) -> SampleCheck:
        """The sample with the lowest mask IoU."""
        return min(self.samples, key=lambda sample: sample.iou)

    def record(self) -> Parity:
        """Give the manifest's record."""
        first = self.required[0]
        budgets = logit_budgets(first.precision, self.max_logit_error)
        return Parity(
            min_iou=self.min_iou,
            mean_iou=self.mean_iou,
            worst_iou=self.worst.iou,
            max_logit_error=largest([route.max_logit_error for route in self.routes]),
            passed=self.passed,
            proofs=tuple(report.proof(required=report in self.required) for report in self.reports),
            logit_budgets={compute.value: budget for compute, budget in budgets.items()},
            worst_relative_error=largest([route.worst_relative_error for route in self.routes]),
            mean_relative_error=largest([route.mean_relative_error for route in self.routes]),
            visible_share=first.visible_share,
            unproved=self.unproved,
        )


def require(asked: Asked) -> None:
    """Raise BackendError if what has to prove an export is missing, before it has cost minutes."""
    if importlib.util.find_spec(REFERENCE[0]) is None:
        raise BackendError(
            f"the parity gate runs every export with {REFERENCE[0]}, which is not installed: run "
            f"{status(REFERENCE[0]).install}"
        )
    backend, (device, index), _ = parse_names(asked.backend, asked.device, asked.precision)
    if backend is None and device is None:
        return
    found = [status(name) for name in BackendName if backend in (None, name)]
    if any(device in (None, place) for one in found for place in one.devices):
        if device is Device.CUDA:
            try:
                gpu.require_gpu(index)
            except BackendError as error:
                raise BackendError(f"{asked}: nothing here can prove it so: {error}") from None
        return
    reasons = "; ".join(
        one.problem
        or f"{one.name} "
        + (f"computes on {', '.join(one.devices)}" if one.devices else f"is missing: {one.install}")
        for one in found
    )
    raise BackendError(f"{asked}: nothing here can prove the export so: {reasons}")


def prove(
    bundle: Path,
    min_iou: float,
    step: Callable[[str], None] = lambda _: None,
    *,
    max_logit_error: float | None = None,
    asked: Asked = NOTHING_ASKED,
) -> ParityReport:
    """Run a complete bundle's samples with the backends that are to prove it.

    The reference runtime has to pass always; so has what was asked for by name, or else what `auto`
    takes here in the arithmetic that `auto` takes. What is merely installed is run if nothing was
    asked for. Nothing that was not asked for stops an export by a fault of its own: it is said. The
    files' hashes are not checked: they were computed just before.

    Raises:
        BackendError: the reference runtime or what was asked for by name cannot run the bundle.
    """

    def run(asked: Asked) -> CheckReport:
        return check(
            bundle,
            backend=asked.backend,
            device=asked.device,
            precision=asked.precision,
            min_iou=min_iou,
            max_logit_error=max_logit_error,
            verify=False,
            step=step,
        )

    def must_run(asked: Asked) -> CheckReport:
        try:
            return run(asked)
        except RuntimeError as error:  # a runtime's own
            raise BackendError(f"{asked}: {one_line(error)}") from error

    unproved: list[str] = []

    def may_run(asked: Asked, name: str) -> CheckReport | None:
        try:
            return run(asked)
        except Exception as error:  # a driver's or a runtime's, of any type
            unproved.append(f"{name}: {one_line(error)}")
            step(f"warning: {unproved[-1]}")
            return None

    others: list[CheckReport] = []
    # In the arithmetic that is stored: `auto` may compute int8 in float32, and prove nothing.
    stored = Compute(Bundle.open(bundle, verify=False).manifest.precision.value)
    with _no_cache():
        taken = must_run(asked) if asked.named else may_run(asked, "what auto takes here")
        required = () if taken is None else (taken,)
        if taken is None or (_place(taken), taken.choice.compute) != (REFERENCE, stored):
            required = (must_run(Asked(*REFERENCE, stored)), *required)
        known = {_place(report) for report in required}
        for place in [] if asked.named else _installed(unproved):
            if place not in known:
                report = may_run(Asked(*place), " on ".join(place))
                others += [] if report is None else [report]
    return ParityReport(min_iou, max_logit_error, required, tuple(others), tuple(unproved))


def _place(report: CheckReport) -> tuple[BackendName, Device]:
    return report.choice.backend, report.choice.device


def _installed(broken: list[str]) -> list[tuple[BackendName, Device]]:
    """Where this machine's backends can compute; one that does not even say so is broken."""
    places = []
    for name in BackendName:
        try:
            found = status(name)
        except Exception as error:  # importing it, say
            broken.append(f"{name}: {one_line(error)}")
            continue
        places += [(name, device) for device in found.devices]
        if found.problem is not None:
            broken.append(f"{name}: {found.problem}")
    return places


def largest(errors: Sequence[float | None]) -> float | None:
    """Give the largest error; None, which stands for NaN and infinity, if one is among them."""
    finite = [error for error in errors if error is not None]
    return max(finite) if len(finite) == len(errors) else None


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
