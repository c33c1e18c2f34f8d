"""What was made and what was proved, as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from cris_deploy.bundle.manifest import (
    GraphName,
    NumberType,
    Route,
    RouteParity,
    StageParity,
    TypeShare,
)
from cris_deploy.bundle.plans import PlanRecord
from cris_deploy.cli.tables import to_text
from cris_deploy.proof.check import CheckReport
from cris_deploy.proof.gate import SampleCheck
from cris_export.proof.verify import ParityReport, largest

_LABEL = 44


def describe_check(report: CheckReport, seconds: float) -> str:
    """Give the text of a check that took so long."""
    lines = [
        f"{report.bundle} ({report.precision}): {_runtime(report)}",
        f"  {report.choice.reason}",
        "",
        _samples(report.samples),
        "",
        _routes(report.routes),
        *(["", _stages(report.stages)] if report.stages else []),
        "",
        *(f"not proved: {reason}" for reason in report.unproved),
        *(f"changed since the export: {weight}" for weight in report.changed),
        f"{'passed' if report.passed else 'FAILED'}: budget {report.min_iou:g} for the mean mask "
        f"IoU, {report.logit_budget:g} for the logits' relative error; "
        f"{_seen(report)} ({seconds:.1f} s)",
    ]
    return "\n".join(lines)


def describe_parity(parity: ParityReport) -> str:
    """Give the text of an export's gate."""
    lines = [_samples(parity.samples)]
    for report in parity.reports:
        required = "" if report in parity.required else " (not what auto takes here)"
        lines += ["", f"{_runtime(report)}{required}", _routes(report.routes)]
        if report.stages:
            lines.append(_stages(report.stages))
        if not report.passed:
            lines.append(f"warning: {report.problem}")
        lines += (f"not proved: {reason}" for reason in report.unproved)
    lines += ["", *(f"not proved: {reason}" for reason in parity.unproved)]
    lines.append(
        f"mean mask IoU against FP32 PyTorch {parity.mean_iou:.5f} (budget {parity.min_iou:g}), "
        f"worst {parity.worst.iou:.5f}; {_seen(parity.required[0])}"
    )
    return "\n".join(lines)


def describe_types(types: Mapping[GraphName, TypeShare]) -> str:
    """Give the table of all graphs' types, and why parts of a float16 graph stay float32."""
    columns = ["graph", "type", "nodes", "%", "weights MB", "%", "multiply-adds G", "%", "casts"]
    rows = []
    for name, share in types.items():
        label, casts = str(name), str(share.conversions)
        for number in NumberType:
            if not share.nodes.get(number) and not share.weight_bytes.get(number):
                continue
            rows.append(
                [
                    label,
                    number,
                    str(share.nodes.get(number, 0)),
                    _share(share.nodes, number),
                    f"{share.weight_bytes.get(number, 0) / 1e6:.1f}",
                    _share(share.weight_bytes, number),
                    f"{share.multiply_adds.get(number, 0) / 1e9:.2f}",
                    _share(share.multiply_adds, number),
                    casts,
                ]
            )
            label = casts = ""
    lines = [to_text(columns, rows, words={"type"})]
    for name, share in types.items():
        if share.islands and name is not GraphName.FULL:
            counts = Counter(share.islands.values()).most_common()
            reasons = ", ".join(f"{count} for {rule}" for rule, count in counts)
            lines.append(f"float32 islands of {name}: {len(share.islands)} nodes ({reasons})")
    return "\n".join(lines)


def describe_plans(records: Iterable[PlanRecord]) -> str:
    """Give the table of plans: which graph, for whom, how large, in which types it multiplies."""
    rows = [
        [
            record.file,
            f"{record.plan_bytes / 1e6:.1f}",
            f"{record.build_seconds:.1f}",
            ", ".join(f"{count} {dtype}" for dtype, count in record.products.items()),
        ]
        for record in records
    ]
    return to_text(["plan", "MB", "built in s", "products"], rows, words={"products"})


def _seen(report: CheckReport) -> str:
    return f"{report.visible_share:.0%} of samples have a mask that is neither empty nor full"


def _runtime(report: CheckReport) -> str:
    choice = report.choice
    return f"{choice.backend} {choice.version} on {choice.place} in {choice.compute}"


def _samples(samples: Iterable[SampleCheck]) -> str:
    """A line per sample, the worst of all its ways."""
    ways: dict[tuple[str, str], list[SampleCheck]] = {}
    for sample in samples:
        ways.setdefault((sample.image, sample.expression), []).append(sample)
    rows = []
    for (image, expression), found in ways.items():
        text = f"{image}: {expression}"
        rows.append(
            [
                text if len(text) <= _LABEL else text[: _LABEL - 1] + "…",
                f"{found[0].area:.1%}",
                f"{min(s.iou for s in found):.5f}",
                _number(largest([s.logit_error for s in found])),
                _number(largest([s.relative_error for s in found])),
            ]
        )
    return to_text(["sample", "covers", "mask IoU", "logit error", "relative"], rows)


def _routes(routes: Iterable[RouteParity]) -> str:
    names = {Route.STAGES: "three stages", Route.FULL: "full graph"}
    columns = ["end to end", "mean IoU", "worst IoU", "logit error", "relative", "mean"]
    rows = [
        [
            names[route.route],
            f"{route.mean_iou:.5f}",
            f"{route.worst_iou:.5f}",
            _number(route.max_logit_error),
            _number(route.worst_relative_error),
            _number(route.mean_relative_error),
        ]
        for route in routes
    ]
    return to_text(columns, rows)


def _stages(stages: Iterable[StageParity]) -> str:
    rows = [
        [
            stage.stage,
            _number(stage.relative_error),
            _number(stage.max_error),
            _number(stage.logit_error),
        ]
        for stage in stages
    ]
    return to_text(["stage by itself", "relative", "largest", "moves logits"], rows)


def _number(error: float | None) -> str:
    """Write an error; None stands for NaN and infinity."""
    return "NaN" if error is None else f"{error:.1e}"


def _share(counts: Mapping[NumberType, int], number: NumberType) -> str:
    return f"{100 * counts.get(number, 0) / max(1, sum(counts.values())):.1f}"
