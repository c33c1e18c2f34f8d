"""The training loop: steps, validations, checkpoints, and a record of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import yaml

from cris_deploy.documents import plain
from cris_deploy.errors import CrisError, DataError, ImageError, InputError
from cris_deploy.files import write_whole
from cris_train.data.batch import Batch
from cris_train.data.loader import lost_workers_named
from cris_train.data.pictures import require_pictures
from cris_train.errors import ReaderError, TrainingError
from cris_train.evaluation.metrics import MaskMetrics
from cris_train.run import state
from cris_train.run.course import Course, chosen_pictures
from cris_train.run.distributed import Process, joined
from cris_train.run.learner import Learner
from cris_train.run.logbook import Logbook
from cris_train.run.recipe import TrainConfig
from cris_train.run.seen import NotFiniteError, Seen
from cris_train.run.validation import UNUSABLE, Validation

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        best: Checkpoint with the best validation mIoU: weights alone.
        last: Checkpoint after the last step, with all that a run needs to go on.
        mean_iou: Of the best, 0 to 1.
        final: Metrics after the last step.
        seconds: Wall time, all parts of the run together.
        writes: Whether this process is the one that reports; True for a single one.
    """

    best: Path
    last: Path
    mean_iou: float
    final: MaskMetrics
    seconds: float
    writes: bool


def train(
    config: TrainConfig, report: Callable[[str], None] = print, *, resume: bool = False
) -> TrainResult:
    """Train a model by a recipe; under torchrun, as one process of many.

    Args:
        config: The recipe.
        report: Called with a line at the start and at every validation, in one process only.
        resume: Go on where the run in `output` left off; start it if there is none.

    Raises:
        InputError: the recipe does not fit the data or the number of processes, or `output` holds
            a run already.
        DataError: the data set is missing or damaged.
        ImageError: a picture cannot be read.
        CheckpointError: `init`, or the run to go on with, is of another shape or recipe.
        BackendError: the device or precision that was asked for is not there.
        TrainingError: the loss is not finite, or a file cannot be written; the last good checkpoint
            stays.
    """
    with joined(config.device, config.precision) as process:
        run = _Run(config, process, report if process.writes else lambda line: None, resume)
        with run.logbook or nullcontext():
            return run.to_end()


class _Run:
    """State of a run: where it is, what it logged, what was best."""

    def __init__(
        self, config: TrainConfig, process: Process, report: Callable[[str], None], resume: bool
    ) -> None:
        self.config, self.process, self.report = config, process, report
        self.folder = Path(config.output)
        if not resume and (self.folder / state.LAST).exists():
            raise InputError(
                f"output: {self.folder} holds a run already: go on with --resume, or set another "
                f"output"
            )
        report(process.told)
        chosen = chosen_pictures(config)
        for line in chosen.told:
            report(line)
        split, self.val = chosen.train, chosen.val
        if not config.skip_broken:  # one that is not there would end the run after its first epoch
            require_pictures(image.path for image in self.val)
        self.course = Course(config, split, process)
        self.learner = Learner(config, self.course, process)
        self.progress = state.Progress()
        if resume:
            found = state.resume(self.folder, self.learner, self.course)
            self.progress = found or self.progress
            report(
                f"resume: {self.folder / state.LAST}, after step {found.step:,} of "
                f"{self.course.steps:,}"
                if found is not None
                else f"resume: nothing in {self.folder} to go on with; starting"
            )
        _agree(process, self.progress.step)
        report(
            f"{len(split):,} images; {self.course.steps:,} steps of {config.samples_per_step} "
            f"expressions"
        )
        self.metrics = MaskMetrics()
        self.validation = Validation(config, process, self.val)
        self.told_broken = self.told_skipped = 0
        self.clock = _Clock(self.progress.seconds)
        self.logbook: Logbook | None = None
        if process.writes:
            for partial in self.folder.glob(".*.partial"):  # of a run that was killed
                partial.unlink(missing_ok=True)
            write_whole(
                self.folder / RECIPE, yaml.safe_dump(plain(config), sort_keys=False).encode()
            )
            self.logbook = Logbook(
                self.folder,
                step=self.progress.step,
                steps=self.course.steps,
                samples_per_step=config.samples_per_step,
                log_bytes=self.progress.log_bytes,
                tensorboard=config.tensorboard,
            )

    def to_end(self) -> TrainResult:
        """All steps that are left."""
        if self.progress.owed:
            self._validate()
        elif self.progress.step == self.course.steps or self._out_of_patience():
            self.metrics = self.validation.measure(self.learner)
        with lost_workers_named(self.config.workers):
            for batch in self._batches():
                if self._out_of_patience():
                    self.report(f"no better for {self.progress.stale} validations: the run ends")
                    break
                self.step(batch)
        return TrainResult(
            best=self.folder / state.BEST,
            last=self.folder / state.LAST,
            mean_iou=self.progress.best_iou,
            final=self.metrics,
            seconds=self.clock.seconds,
            writes=self.process.writes,
        )

    def _batches(self) -> Iterator[Batch]:
        """Those that are left; what was learnt is saved before an unreadable one ends the run."""
        try:
            yield from self.course.batches(self.progress.step)
        except (ImageError, DataError) as error:
            self._note(self.learner.look())
            if self.progress.step:
                self._save()
            saved = (self.folder / state.LAST).exists()
            raise self._unusable(error, saved) from error

    def _unusable(self, error: CrisError, saved: bool) -> CrisError:
        """The error with what to do about it."""
        again = "go on with --resume" if saved else "start again"
        skips = self.config.skip_broken or isinstance(error, ReaderError)
        mend = "" if skips else "mend it, or leave such pictures out with skip_broken=true, and "
        return type(error)(f"{error}; {mend}{again}")

    def step(self, batch: Batch) -> None:
        """One optimiser step, and what is due after it."""
        config, progress = self.config, self.progress
        try:
            self._note(self.learner.step(batch, progress.step))
            progress.step += 1
            self.clock.count(config.samples_per_step)
            validates = self._validation_due(batch)
            logs, saves = (progress.step % n == 0 for n in (config.log_every, config.save_every))
            if validates or logs or saves:
                self._note(self.learner.look())
        except NotFiniteError as error:
            last = self.folder / state.LAST
            kept = f"{last} is as it was before" if last.exists() else "nothing was saved before"
            raise TrainingError(f"step {error.number + 1}: {error}; {kept}") from error
        if validates:
            self._validate()
            return
        if logs:
            self._log(None)
        if saves:
            self._save()

    def _note(self, seen: Seen | None) -> None:
        """Count what came of a step; the loss of one that was skipped may be no number."""
        if seen is None:
            return
        self.progress.skipped += seen.skipped
        if math.isfinite(seen.loss):
            self.progress.loss_sum += seen.loss
            self.progress.loss_count += 1
        if self.logbook is not None:
            self.logbook.tick(seen.loss)

    def _validate(self) -> None:
        """Measure and record; if that fails, a run that goes on does it first."""
        self.progress.owed = True
        try:
            with self.clock.paused():
                self.metrics = self.validation.measure(self.learner)
        except UNUSABLE as error:
            self._save()
            raise self._unusable(error, saved=True) from error
        self.progress.owed = False
        self._record(self.metrics)

    def _record(self, metrics: MaskMetrics) -> None:
        """Log, draw, save: `best.pth` if it is, `last.pth` always."""
        config, progress = self.config, self.progress
        iou, shares = metrics.mean_iou, metrics.precision
        is_best = iou > progress.best_iou
        progress.cur_iou, progress.precision = iou, shares
        progress.best_iou = max(iou, progress.best_iou)
        progress.stale = 0 if is_best else progress.stale + 1
        loss = self._log(metrics)
        tiles = self.validation.tiles()
        if self.logbook is not None and tiles:
            self.logbook.sheet(
                tiles, progress.step, f"step {progress.step:,}, mIoU {100 * iou:.1f}"
            )
        if is_best and self.process.writes:
            state.save_best(self.folder, self.learner, self.course, progress)
        self._save()
        self.report(
            f"{progress.step * config.samples_per_step:>9,} of "
            f"{self.course.steps * config.samples_per_step:,} expressions, "
            f"{self.clock.seconds / 60:6.1f} min | loss {loss:.4f} | mIoU {iou:.4f} | "
            f"oIoU {metrics.overall_iou:.4f} | "
            + " ".join(f"{name} {share:.3f}" for name, share in shares.items())
        )
        self._tell_broken()

    def _validation_due(self, batch: Batch) -> bool:
        """Every so many expressions or every epoch, and after the last step."""
        config, step = self.config, self.progress.step
        if step == self.course.steps:
            return True
        if batch.crops is not None:  # nothing learns to segment yet
            return False
        if not config.validate_every:
            return self.course.ends_epoch(step)
        before, now = ((s * config.samples_per_step) for s in (step - 1, step))
        return now // config.validate_every > before // config.validate_every

    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.progress.stale

    def _log(self, metrics: MaskMetrics | None) -> float:
        """Write a line; returns the mean loss since the last one, NaN if there was none."""
        progress = self.progress
        loss = progress.loss_sum / progress.loss_count if progress.loss_count else math.nan
        if self.logbook is not None:
            self.logbook.row(
                step=progress.step,
                epoch=self.course.epochs(progress.step),
                seconds=self.clock.seconds,
                speed=self.clock.speed(),
                rate=float(self.learner.scheduler.get_last_lr()[-1]),
                loss=loss,
                metrics=metrics,
            )
        progress.loss_sum, progress.loss_count = 0.0, 0
        return loss

    def _save(self) -> None:
        if self.logbook is not None:
            self.progress.seconds = self.clock.seconds
            self.progress.log_bytes = self.logbook.settle()
            state.save_last(self.folder, self.learner, self.course, self.progress)

    def _tell_broken(self) -> None:
        every = [b for part in self.process.all_of(self.course.broken) for b in part]
        if self.progress.skipped > self.told_skipped:
            self.told_skipped = self.progress.skipped
            self.report(f"steps skipped so far, for float16 overflowed: {self.told_skipped:,}")
        paths = self.validation.left_out | {b.path: b.reason for b in every}
        if len(paths) > self.told_broken:
            self.told_broken = len(paths)
            path, reason = next(iter(paths.items()))
            self.report(f"left out so far: {len(paths)} pictures, such as {path}: {reason}")


class _Clock:
    """Seconds of the whole run, and how fast training was since it was last asked."""

    def __init__(self, before: float) -> None:
        self._before, self._begun = before, time.monotonic()
        self._samples, self._since, self._paused = 0, self._begun, 0.0

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._begun

    def count(self, samples: int) -> None:
        self._samples += samples

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Validation is not training."""
        begun = time.monotonic()
        yield
        self._paused += time.monotonic() - begun

    def speed(self) -> float:
        """Samples per second of training."""
        now = time.monotonic()
        speed = self._samples / max(now - self._since - self._paused, 1e-9)
        self._samples, self._since, self._paused = 0, now, 0.0
        return speed


def _agree(process: Process, step: int) -> None:
    """All processes go on from the same step."""
    steps = process.all_of(step)
    if len(set(steps)) > 1:
        raise TrainingError(
            f"output: the processes found checkpoints of steps {sorted(set(steps))}: it must be a "
            f"folder that all machines see"
        )
