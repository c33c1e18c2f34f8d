"""A report of `cris-eval` to read: Markdown that is legible as it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cris_deploy.cli.tables import to_markdown
from cris_train.evaluation.metrics import PRECISION_NAMES
from cris_train.evaluation.paper import TABLE_2, ablation_row
from cris_train.evaluation.report import (
    Difference,
    EvalReport,
    KindScore,
    MeasuredKind,
    SplitScore,
)

_METRICS = ("mIoU", "oIoU", *PRECISION_NAMES)
_SHOWN = 20  # left-out pictures that are named; JSON has all


def describe(report: EvalReport, differences: Sequence[Difference] = ()) -> str:
    """Tables of all metrics in points of 100, what was measured above, remarks below."""
    parts = [_subject(report), _scores(report)]
    parts += [
        table
        for table in (
            _groups("kind of expression", [(s.split, s.by_kind) for s in report.splits]),
            _groups("words", [(s.split, s.by_words) for s in report.splits]),
            _groups("object's share of the picture", [(s.split, s.by_size) for s in report.splits]),
        )
        if table
    ]
    parts += [_presence(report), *_beside(report)]
    if differences:
        parts.append(_differences(differences))
    left_out = _left_out(report)
    if left_out:
        parts.append(left_out)
    return "\n\n".join(part for part in parts if part)


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


def _groups(title: str, splits: Sequence[tuple[str, Mapping[str, KindScore]]]) -> str:
    rows = [
        (f"{split}: {group}", f"{value.expressions:,}", f"{100 * value.mean_iou:.2f}")
        for split, groups in splits
        for group, value in groups.items()
    ]
    return to_markdown((title, "expressions", "mIoU"), rows) if rows else ""


def _presence(report: EvalReport) -> str:
    rows = [
        (
            f"{score.split}, score {told.threshold:.3f} (chosen on {told.chosen_on})",
            f"{told.present:,}",
            f"{100 * told.kept:.1f}",
            f"{told.absent:,}",
            f"{100 * told.caught:.1f}",
        )
        for score in report.splits
        if (told := score.presence) is not None
    ]
    head = ("is it there?", "there", "kept, %", "not there", "caught, %")
    return to_markdown(head, rows) if rows else ""


def _beside(report: EvalReport) -> list[str]:
    """The paper's rows for what was measured whole: Table 2's methods, Table 1's same model."""
    data = (report.data.lower(), report.split_by)
    scores = {score.split: score for score in report.splits}
    rows = [
        (
            row.method + ("*" if row.refined else ""),
            row.backbone,
            *(_points(row.mean_iou(data, split)) for split in scores),
        )
        for row in TABLE_2
        if any(row.mean_iou(data, split) is not None for split in scores)
    ]
    if report.limit or not rows:
        return []
    what = report.measured
    ours = (what.name, what.architecture, *(_points(100 * s.mean_iou) for s in scores.values()))
    head = ("mIoU, the paper's Table 2 (*: post-processed)", "backbone", *scores)
    parts = [to_markdown(head, [*rows, ours])]
    same = ablation_row(
        data,
        architecture=what.architecture,
        input_size=what.input_size,
        contrastive=what.contrastive,
        decoder_layers=what.decoder_layers,
    )
    if same is not None and "val" in scores:
        columns = ("mIoU", *PRECISION_NAMES)
        head = ("val, the paper's Table 1, same model", *columns)
        pairs = (("the paper", same.metrics), (what.name, _in_points(scores["val"])))
        lines = [(name, *(_points(values[c]) for c in columns)) for name, values in pairs]
        parts.append(to_markdown(head, lines))
    return parts


def _in_points(score: SplitScore) -> dict[str, float]:
    return {name: 100 * value for name, value in score.metrics.items()}


def _points(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


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
