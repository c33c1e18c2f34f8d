"""What an evaluation found: plain data, its JSON, and tables to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from cris_deploy import documents
from cris_deploy.documents import Count, Sha256, Share
from cris_deploy.errors import InputError
from cris_train.evaluation.metrics import PRECISION_NAMES

FORMAT: Final = 1


class MeasuredKind(StrEnum):
    """What can be measured."""

    CHECKPOINT = "checkpoint"
    BUNDLE = "bundle"


@dataclass(frozen=True)
class Measured:
    """What was measured, and how it ran.

    Attributes:
        kind: A checkpoint in PyTorch, or a bundle in an engine.
        name: Of the file or folder.
        sha256: Of the checkpoint file, or of the bundle's manifest (which holds its files' hashes).
        checkpoint_sha256: Of the checkpoint; the one that a bundle was exported from.
        architecture: Of the image encoder.
        decoder_layers: Of the decoder.
        contrastive: Whether it has the text-to-pixel head.
        input_size: Side of the letterboxed picture, pixels.
        word_len: Tokens of an expression.
        backend: "pytorch", or the engine's runtime.
        backend_version: Of it.
        device: Where it ran.
        precision: Arithmetic it ran in.
        stored: Precision of a bundle; None for a checkpoint.
        parity: Whether the bundle passed its parity gate; None if it has no record of one, and
            for a checkpoint.
    """

    kind: MeasuredKind
    name: str
    sha256: Sha256
    checkpoint_sha256: Sha256
    architecture: str
    decoder_layers: int
    contrastive: bool
    input_size: int
    word_len: int
    backend: str
    backend_version: str
    device: str
    precision: str
    stored: str | None = None
    parity: bool | None = None

    @property
    def mark(self) -> str | None:
        """What a reader of the numbers has to know about the bundle, or None."""
        if self.kind is MeasuredKind.CHECKPOINT or self.parity:
            return None
        if self.parity is None:
            return "the bundle has no record of a parity gate: run cris-export check"
        return "THE BUNDLE FAILED ITS PARITY GATE: it does not give the checkpoint's masks"


@dataclass(frozen=True)
class LeftOut:
    """A picture, or one of its expressions, that could not be measured."""

    picture: str
    reason: str


@dataclass(frozen=True)
class KindScore:
    """Number of expressions of a kind, and their mIoU, 0 to 1."""

    expressions: Count
    mean_iou: Share


@dataclass(frozen=True)
class Presence:
    """Whether something is there, told by a threshold of the score, on pairs that say so.

    Attributes:
        threshold: Below this highest probability, nothing is taken to be there.
        chosen_on: The split that it was chosen on, or the bundle that has it.
        present: Expressions that mean something in their picture.
        kept: Share of them at or above the threshold.
        absent: Names of what is not in the picture.
        caught: Share of them below.
    """

    threshold: Share
    chosen_on: str
    present: Count
    kept: Share
    absent: Count
    caught: Share


@dataclass(frozen=True)
class SplitScore:
    """Metrics of a split, 0 to 1.

    Attributes:
        split: Its name.
        images: Pictures measured.
        objects: Objects in them.
        expressions: Expressions measured, all of every object.
        mean_iou: mIoU, the paper's "IoU": mean over expressions.
        overall_iou: oIoU: total intersection over total union.
        precision: {"Pr@50": share of expressions with an IoU above 0.5, ...}.
        by_kind: For generated scenes, kind of expression -> score; else empty.
        by_words: For generated scenes, number of words ("3-4") -> score; else empty.
        by_size: For generated scenes, the object's share of the picture -> score; else empty.
        left_out: What could not be measured.
        presence: For scenes of named things, else None.
    """

    split: str
    images: Count
    objects: Count
    expressions: Count
    mean_iou: Share
    overall_iou: Share
    precision: Mapping[str, Share]
    by_kind: Mapping[str, KindScore] = field(default_factory=dict)
    by_words: Mapping[str, KindScore] = field(default_factory=dict)
    by_size: Mapping[str, KindScore] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    presence: Presence | None = None

    def __post_init__(self) -> None:
        for name in PRECISION_NAMES:
            if name not in self.precision:
                raise InputError(f"precision lacks {name}")

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by the names of tables."""
        return {"mIoU": self.mean_iou, "oIoU": self.overall_iou, **self.precision}


@dataclass(frozen=True)
class EvalReport:
    """An evaluation.

    Attributes:
        measured: What, and how it ran.
        data: Name of the data set's folder.
        split_by: Who split it.
        threshold: Probability above which a pixel belongs to the mask.
        limit: Pictures of each split that were measured, from the first; 0 for all.
        splits: One score each.
        seconds: Wall time of all splits.
        versions: Package -> version.
        created: UTC, ISO 8601.
    """

    measured: Measured
    data: str
    split_by: str
    threshold: Share
    limit: Count
    splits: tuple[SplitScore, ...]
    seconds: float
    versions: Mapping[str, str]
    created: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"format": FORMAT, **documents.plain(self)}


def read_report(path: str | Path) -> EvalReport:
    """Read what `cris-eval --json FILE` or `--output DIR` wrote.

    Raises:
        InputError: it cannot be read, or is something else.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"report {path} cannot be read: {error.strerror or error}") from error
    return documents.read(
        EvalReport,
        text,
        f"report {path}",
        newest=FORMAT,
        remedy="give a file that cris-eval --json wrote",
        error=InputError,
    )


@dataclass(frozen=True)
class Difference:
    """One split in two reports.

    Attributes:
        split: Its name.
        points: Metric -> this report's minus the other's, in points of 100.
        note: Why the two may not be compared as they are, or None.
    """

    split: str
    points: Mapping[str, float]
    note: str | None


def compare(report: EvalReport, other: EvalReport) -> tuple[Difference, ...]:
    """Differences on the splits that both have.

    Raises:
        InputError: they have none in common.
    """
    theirs = {score.split: score for score in other.splits}
    found = []
    for score in report.splits:
        if score.split not in theirs:
            continue
        partner = theirs[score.split]
        points = {
            name: 100 * (value - partner.metrics[name]) for name, value in score.metrics.items()
        }
        found.append(Difference(score.split, points, _note(report, score, other, partner)))
    if not found:
        have = ", ".join(theirs) or "none"
        raise InputError(f"the report to compare with has other splits: {have}")
    return tuple(found)


def _note(
    report: EvalReport, score: SplitScore, other: EvalReport, partner: SplitScore
) -> str | None:
    pairs = (
        ("data", report.data, other.data),
        ("split_by", report.split_by, other.split_by),
        ("expressions", f"{score.expressions:,}", f"{partner.expressions:,}"),
        ("threshold", report.threshold, other.threshold),
    )
    differing = [f"{name} {mine} and {theirs}" for name, mine, theirs in pairs if mine != theirs]
    return f"not like with like: {'; '.join(differing)}" if differing else None
