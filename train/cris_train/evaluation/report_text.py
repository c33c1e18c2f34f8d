"""A report of `cris-eval` to read: Markdown that is legible as it stands."""

from __future__ import annotations

from collections.abc import Sequence

from cris_deploy.cli.tables import to_markdown
from cris_train.evaluation.metrics import PRECISION_NAMES
from cris_train.evaluation.report import Difference, EvalReport, MeasuredKind, paper_score

_METRICS = ("mIoU", "oIoU", *PRECISION_NAMES)
_SHOWN = 20  # left-out pictures that are named; JSON has all


def describe(report: EvalReport, differences: Sequence[Difference] = ()) -> str:
    """Tables of all metrics in points of 100, what was measured above, remarks below."""
    parts = [_subject(report), _scores(report)]
    kinds = _kinds(report)
    if kinds:
        parts.append(kinds)
    paper = paper_score(report)
    if paper is not None:
        parts.append(
            f"The paper's mIoU on {paper.data} val: {paper.rn50:.2f} (RN50), {paper.rn101:.2f} "
            f"(RN101)."
        )
    if differences:
        parts.append(_differences(differences))
    left_out = _left_out(report)
    if left_out:
        parts.append(left_out)
    return "\n\n".join(parts)


def markdown(report: EvalReport, differences: Sequence[Difference], sheets: Sequence[str]) -> str:
    """`describe` with a title and picture sheets, as report.md."""
    pictures = "\n\n".join(f"![{name}]({name})" for name in sheets)
    title = f"# {report.measured.name} on {report.data}"
    return "\n\n".join([title, describe(report, differences), pictures]).rstrip() + "\n"


def _subject(report: EvalReport) -> str:
    what = report.measured
    stored = f"{what.stored} " if what.kind is MeasuredKind.BUNDLE else ""
    head = "contrastive head" if what.contrastive else "plain head"
    lines = [
        f"{stored}{what.kind} {what.name} (sha256 {what.sha256[:12]}): {what.architecture}, "
        f"{what.decoder_layers} decoder layers, {head}, {what.input_size} pixels, "
        f"{what.word_len} tokens",
        f"{what.backend} {what.backend_version} on {what.device} in {what.precision}, threshold "
        f"{report.threshold:g}, {report.seconds:.1f} s",
    ]
    if what.mark is not None:
        lines.append(f"**{what.mark}**")
    return "\n".join(f"- {line}" for line in lines)


def _scores(report: EvalReport) -> str:
    head = (f"{report.data} ({report.split_by})", "images", "objects", "expressions", *_METRICS)
    part = f" (first {report.limit:,} images)" if report.limit else ""
    rows = [
        (
            f"{score.split}{part}",
            *(f"{count:,}" for count in (score.images, score.objects, score.expressions)),
            *(f"{100 * score.metrics[name]:.2f}" for name in _METRICS),
        )
        for score in report.splits
    ]
    return to_markdown(head, rows)


def _kinds(report: EvalReport) -> str:
    rows = [
        (f"{score.split}: {kind}", f"{value.expressions:,}", f"{100 * value.mean_iou:.2f}")
        for score in report.splits
        for kind, value in score.by_kind.items()
    ]
    return to_markdown(("kind of expression", "expressions", "mIoU"), rows) if rows else ""


def _differences(differences: Sequence[Difference]) -> str:
    rows = [
        (difference.split, *(_signed(difference.points[name]) for name in _METRICS))
        for difference in differences
    ]
    notes = dict.fromkeys(d.note for d in differences if d.note is not None)
    return "\n\n".join([to_markdown(("difference in points", *_METRICS), rows), *notes])


def _signed(points: float) -> str:
    return f"{round(points, 2) + 0.0:+.2f}"  # + 0.0: no "-0.00"


def _left_out(report: EvalReport) -> str:
    lines = []
    for score in report.splits:
        if score.left_out:
            lines.append(f"{score.split}: {len(score.left_out):,} left out")
            lines += [f"- {entry.reason}" for entry in score.left_out[:_SHOWN]]
            if len(score.left_out) > _SHOWN:
                lines.append(f"- and {len(score.left_out) - _SHOWN:,} more")
    return "\n".join(lines)
