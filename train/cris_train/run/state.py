"""Where a run is, on disk: written whole or not at all, and gone on with exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cris_deploy.documents import convert, plain
from cris_deploy.errors import InputError
from cris_train import checkpoint
from cris_train.errors import CheckpointError, TrainingError
from cris_train.run.course import Course
from cris_train.run.learner import Learner
from cris_train.run.recipe import TrainConfig
from cris_train.settings import differences

LAST, BEST = "last.pth", "best.pth"
# What may change between one part of a run and the next: numbers do not depend on it, rounding
# aside.
FREE = {
    *("data", "images", "output", "device", "workers", "cache", "recompute", "compile"),
    *("sheet_tiles", "save_every", "log_every", "tensorboard"),
    # These change them from here on, which a person may want of a run that is under way; `epochs`
    # may rise.
    *("skip_broken", "validate_every", "epochs"),
}


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: Optimiser steps done.
        seconds: Spent so far, all parts of the run together.
        best_iou: Best validation mIoU, 0 to 1; -1 before the first.
        loss_sum: Of the losses since the last line of the log.
        loss_count: Their number.
        log_bytes: Length of log.csv.
        cur_iou: Newest validation mIoU; NaN before the first.
        precision: Newest precision at IoU thresholds.
        skipped: Steps that the loss scaler has left out.
        owed: The validation that is due after `step` failed, and is to be done first.
    """

    step: int = 0
    seconds: float = 0.0
    best_iou: float = -1.0
    loss_sum: float = 0.0
    loss_count: int = 0
    log_bytes: int = 0
    cur_iou: float = math.nan
    precision: dict[str, float] | None = None
    skipped: int = 0
    owed: bool = False


def save_last(folder: Path, learner: Learner, course: Course, progress: Progress) -> None:
    """Write all that a run needs to go on.

    Raises:
        TrainingError: it cannot be written, such as for a full disk; the file before stays.
    """
    state = learner.state()
    optimizer, scheduler = state.pop("optimizer"), state.pop("scheduler")
    training = {
        **state,
        "progress": asdict(progress),
        "recipe": plain(learner.config),
        "steps_per_epoch": list(course.steps_per_epoch),
    }
    _save(
        folder / LAST,
        learner.model,
        course,
        progress,
        {"optimizer": optimizer, "scheduler": scheduler, "training": training},
    )


def save_best(folder: Path, learner: Learner, course: Course, progress: Progress) -> None:
    """Write the weights that were measured, to be deployed; as `save_last`."""
    _save(folder / BEST, learner.judged, course, progress, {})


def _save(
    path: Path, model: Any, course: Course, progress: Progress, more: Mapping[str, Any]
) -> None:
    try:
        checkpoint.save(
            path,
            model,
            epoch=math.floor(course.epochs(progress.step)),
            cur_iou=progress.cur_iou,
            best_iou=progress.best_iou,
            precision=progress.precision,
            **more,
        )
    except (OSError, RuntimeError) as error:  # torch's writer turns some failures into the latter
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        kept = "the one before is kept" if path.exists() else "there is none before"
        raise TrainingError(
            f"{path} cannot be written: {reason}; {kept}. Make room and go on with --resume"
        ) from error


def resume(folder: Path, learner: Learner, course: Course) -> Progress | None:
    """Put a learner where a run left off; None if the folder has no `last.pth`.

    Raises:
        CheckpointError: the file cannot be used, or is of another model, recipe or data set; the
            message names what differs.
    """
    path = folder / LAST
    if not path.exists():
        return None
    raw = checkpoint.read(path)
    training = raw.get("training")
    if not isinstance(training, Mapping):
        raise CheckpointError(
            f"{path}: holds weights, but not where its training was; start from them with "
            f"init={path} and another output"
        )
    _same(path, training, learner.config, course)
    state = {
        name: raw[name] if name in ("optimizer", "scheduler") else training[name]
        for name in ("optimizer", "scheduler", "scaler", "ema")
    }
    weights = {
        name.removeprefix(checkpoint.PREFIX): value for name, value in raw["state_dict"].items()
    }
    try:
        learner.load_state(weights, state)
        known = {each.name for each in fields(Progress)}  # a later version may note more
        found = Progress(**{k: v for k, v in training["progress"].items() if k in known})
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: does not fit this run: {str(error).splitlines()[0]}"
        ) from error
    if found.step > course.steps:
        raise CheckpointError(
            f"{path}: {found.step:,} steps are done, and with epochs={learner.config.epochs} the "
            f"run has {course.steps:,}: set epochs to what it was, or more"
        )
    return found


def _as_now(path: Path, recipe: Any) -> Any:
    """A recipe as a run has stored it, with settings that were added since at their defaults.

    Raises:
        CheckpointError: it has settings, or values of them, that this version does not know.
    """
    remedy = f"go on with the version that wrote it, or keep its weights with init={path}"
    try:
        return plain(convert(TrainConfig, recipe, "its recipe"))
    except InputError as error:
        raise CheckpointError(f"{path}: of another version: {error}; {remedy}") from error


def _same(path: Path, training: Mapping[str, Any], config: TrainConfig, course: Course) -> None:
    found = differences(_as_now(path, training["recipe"]), plain(config))
    changed = {name: pair for name, pair in found.items() if name.split(".")[0] not in FREE}
    if changed:
        told = "; ".join(f"{name} was {old}, is {new}" for name, (old, new) in changed.items())
        raise CheckpointError(
            f"{path}: another recipe: {told}. Go on with the settings it had, or start a run of "
            f"its own with another output (and init={path} to keep the weights)"
        )
    before, now = training["steps_per_epoch"], list(course.steps_per_epoch)
    if before != now:
        raise CheckpointError(
            f"{path}: the data set has changed: an epoch had {before} steps, has {now}. Bring the "
            f"data back, or start a run of its own with another output"
        )
