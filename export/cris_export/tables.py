"""What was proved, as text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cris_deploy.check import CheckReport, SampleCheck
from cris_deploy.manifest import Route, RouteParity, StageParity

if TYPE_CHECKING:  # the gate needs what an export needs, a check does not
    from cris_export.verify import ParityReport

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
        f"{'passed' if report.passed else 'FAILED'}: budget {report.min_iou:g} for the mean mask "
        f"IoU ({seconds:.1f} s)",
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
        f"mean mask IoU against FP32 PyTorch {parity.mean_iou:.5f} (budget {parity.min_iou:g})"
    )
    return "\n".join(lines)


def _runtime(report: CheckReport) -> str:
    choice = report.choice
    return f"{choice.backend} {choice.version} on {choice.place} in {choice.compute}"


def _samples(samples: Iterable[SampleCheck]) -> list[str]:
    """A line per sample, the worst of all its ways."""
    ways: dict[tuple[str, str], list[SampleCheck]] = {}
    for sample in samples:
        ways.setdefault((sample.image, sample.expression), []).append(sample)
    lines = [f"{'sample':<{_LABEL}}{'mask IoU':>10}{'logit error':>13}"]
    for (image, expression), found in ways.items():
        text = f"{image}: {expression}"
        text = text if len(text) <= _LABEL - 2 else text[: _LABEL - 3] + "…"
        errors = [sample.logit_error for sample in found]
        error = None if None in errors else max(e for e in errors if e is not None)
        lines.append(f"{text:<{_LABEL}}{min(s.iou for s in found):>10.5f}{_number(error):>13}")
    return lines


def _routes(routes: Iterable[RouteParity]) -> list[str]:
    names = {Route.STAGES: "three stages", Route.FULL: "full graph"}
    return [
        f"  {'end to end':<16}{'mean IoU':>12}{'worst IoU':>12}{'logit error':>14}",
        *(
            f"  {names[route.route]:<16}{route.mean_iou:>12.5f}{route.worst_iou:>12.5f}"
            f"{_number(route.max_logit_error):>14}"
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


def _number(error: float | None) -> str:
    """Write an error; None stands for NaN and infinity."""
    return "NaN" if error is None else f"{error:.1e}"
