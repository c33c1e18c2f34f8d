"""What was proved, as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cris_deploy.bundle.manifest import Route, RouteParity, StageParity
from cris_deploy.proof.check import CheckReport
from cris_deploy.proof.gate import SampleCheck

if TYPE_CHECKING:  # the gate needs what an export needs, a check does not
    from cris_export.proof.verify import ParityReport

_LABEL = 46


def describe_check(report: CheckReport, seconds: float) -> str:
    """Give the text of a check that took so long."""
    lines = [
        f"{report.bundle} ({report.precision}): {_runtime(report)}",
        f"  {report.choice.reason}",
        "",
        *_samples(report.samples),
        "",
        *_routes(report.routes),
        *(["", *_stages(report.stages)] if report.stages else []),
        "",
        *(f"not proved: {reason}" for reason in report.unproved),
        *_changed(report),
        f"{'passed' if report.passed else 'FAILED'}: budget {report.min_iou:g} for the mean mask "
        f"IoU, {report.logit_budget:g} for the logits' relative error; "
        f"{_seen(report)} ({seconds:.1f} s)",
    ]
    return "\n".join(lines)


def describe_parity(parity: ParityReport) -> str:
    """Give the text of an export's gate."""
    lines = [*_samples(parity.samples)]
    for report in parity.reports:
        required = "" if report in parity.required else " (not what auto takes here)"
        lines += ["", f"{_runtime(report)}{required}", *_routes(report.routes)]
        if report.stages:
            lines += _stages(report.stages)
        if not report.passed:
            lines.append(f"warning: {report.problem}")
        lines += (f"not proved: {reason}" for reason in report.unproved)
    lines += ["", *(f"not proved: {reason}" for reason in parity.unproved)]
    lines.append(
        f"mean mask IoU against FP32 PyTorch {parity.mean_iou:.5f} (budget {parity.min_iou:g}), "
        f"worst {parity.worst.iou:.5f}; {_seen(parity.required[0])}"
    )
    return "\n".join(lines)


def _seen(report: CheckReport) -> str:
    return f"{report.visible_share:.0%} of samples have a mask that is neither empty nor full"


def _changed(report: CheckReport) -> list[str]:
    return [f"changed since the export: {weight}" for weight in report.changed]


def _runtime(report: CheckReport) -> str:
    choice = report.choice
    return f"{choice.backend} {choice.version} on {choice.place} in {choice.compute}"


def _samples(samples: Iterable[SampleCheck]) -> list[str]:
    """A line per sample, the worst of all its ways."""
    ways: dict[tuple[str, str], list[SampleCheck]] = {}
    for sample in samples:
        ways.setdefault((sample.image, sample.expression), []).append(sample)
    lines = [
        f"{'sample':<{_LABEL}}{'covers':>8}{'mask IoU':>10}{'logit error':>13}{'relative':>10}"
    ]
    for (image, expression), found in ways.items():
        text = f"{image}: {expression}"
        text = text if len(text) <= _LABEL - 2 else text[: _LABEL - 3] + "…"
        lines.append(
            f"{text:<{_LABEL}}{found[0].area:>8.1%}{min(s.iou for s in found):>10.5f}"
            f"{_number(_largest(s.logit_error for s in found)):>13}"
            f"{_number(_largest(s.relative_error for s in found)):>10}"
        )
    return lines


def _routes(routes: Iterable[RouteParity]) -> list[str]:
    names = {Route.STAGES: "three stages", Route.FULL: "full graph"}
    return [
        f"  {'end to end':<16}{'mean IoU':>12}{'worst IoU':>12}{'logit error':>14}"
        f"{'relative':>12}{'mean':>12}",
        *(
            f"  {names[route.route]:<16}{route.mean_iou:>12.5f}{route.worst_iou:>12.5f}"
            f"{_number(route.max_logit_error):>14}{_number(route.worst_relative_error):>12}"
            f"{_number(route.mean_relative_error):>12}"
            for route in routes
        ),
    ]


def _stages(stages: Iterable[StageParity]) -> list[str]:
    return [
        f"  {'stage by itself':<16}{'relative':>12}{'largest':>12}{'moves logits':>14}",
        *(
            f"  {stage.stage:<16}{_number(stage.relative_error):>12}"
            f"{_number(stage.max_error):>12}{_number(stage.logit_error):>14}"
            for stage in stages
        ),
    ]


def _largest(errors: Iterable[float | None]) -> float | None:
    found = list(errors)
    return None if None in found else max(error for error in found if error is not None)


def _number(error: float | None) -> str:
    """Write an error; None stands for NaN and infinity."""
    return "NaN" if error is None else f"{error:.1e}"
