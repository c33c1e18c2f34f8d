"""What a run leaves to look at: log.csv, TensorBoard's events, a progress bar, picture sheets."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tqdm import tqdm

from cris_train.errors import TrainingError
from cris_train.evaluation.metrics import PRECISION_NAMES, MaskMetrics
from cris_train.evaluation.sheet import Tile, picture_sheet, write_sheet

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG = "log.csv"
EVENTS = "events"
SHEETS = "sheets"
LOG_COLUMNS = (
    "step",
    "epoch",
    "samples",
    "seconds",
    "samples_per_second",
    "learning_rate",
    "loss",
    "mean_iou",
    "overall_iou",
    *PRECISION_NAMES,
)


class Logbook:
    """The records of a run, by the one process that writes.

    A run that goes on cuts them back to where its checkpoint was: no line is there twice, and none
    is missing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        steps: int,
        samples_per_step: int,
        log_bytes: int,
        tensorboard: bool,
    ) -> None:
        """`step` steps are done, and log.csv had `log_bytes` bytes then.

        Raises:
            TrainingError: log.csv is shorter than it was, or cannot be written; TensorBoard is
                asked for and not installed.
        """
        self._folder, self._each = folder, samples_per_step
        path = folder / LOG
        try:
            self._log = path.open("a+", newline="", encoding="utf-8")
            if path.stat().st_size < log_bytes:
                raise TrainingError(
                    f"{path} has {path.stat().st_size} bytes and had {log_bytes} when last.pth was "
                    f"written: put it back, or start a run of its own with another output"
                )
            self._log.truncate(log_bytes)
        except OSError as error:
            raise TrainingError(f"{path} cannot be written: {error.strerror or error}") from error
        if not log_bytes:
            self._append(LOG_COLUMNS)
        with self._writing(EVENTS):
            self._events = _events(folder / EVENTS, step) if tensorboard else None
        self._bar = tqdm(
            total=steps * samples_per_step,
            initial=step * samples_per_step,
            unit=" samples",
            unit_scale=True,
            dynamic_ncols=True,
            disable=None,
        )

    def tick(self, loss: float) -> None:
        """A step is done."""
        self._bar.update(self._each)
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def row(
        self,
        *,
        step: int,
        epoch: float,
        seconds: float,
        speed: float,
        rate: float,
        loss: float,
        metrics: MaskMetrics | None,
    ) -> None:
        """A line of the log; with metrics after a validation."""
        measured: dict[str, float] = {}
        if metrics is not None:
            measured = {
                "mean_iou": metrics.mean_iou,
                "overall_iou": metrics.overall_iou,
                **metrics.precision,
            }
        values: Mapping[str, str] = {
            "step": str(step),
            "epoch": f"{epoch:.4f}",
            "samples": str(step * self._each),
            "seconds": f"{seconds:.1f}",
            "samples_per_second": f"{speed:.4g}",
            "learning_rate": f"{rate:.6g}",
            "loss": f"{loss:.9g}",
            **{name: f"{value:.6g}" for name, value in measured.items()},
        }
        self._append([values.get(name, "") for name in LOG_COLUMNS])
        if self._events is not None:
            with self._writing(EVENTS):
                self._events.add_scalar("train/loss", loss, step)
                self._events.add_scalar("train/learning_rate", rate, step)
                self._events.add_scalar("train/samples_per_second", speed, step)
                for name, value in measured.items():
                    self._events.add_scalar(f"val/{name}", value, step)

    def sheet(self, tiles: Sequence[Tile], step: int, title: str) -> None:
        """A sheet of validation masks, as PNG and for TensorBoard."""
        picture = picture_sheet(tiles, title=title)
        write_sheet(self._folder / SHEETS / f"step_{step:08d}.png", picture)
        if self._events is not None:
            with self._writing(EVENTS):
                self._events.add_image("val/masks", picture, step, dataformats="HWC")

    def settle(self) -> int:
        """Bring all to the disk, before a checkpoint counts on it; returns log.csv's length."""
        with self._writing(LOG):
            os.fsync(self._log.fileno())
        if self._events is not None:
            with self._writing(EVENTS):
                self._events.flush()
        return os.fstat(self._log.fileno()).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        # What fails on the way out does not hide what failed before.
        with self._writing(EVENTS) if value is None else suppress(OSError), self._log:
            if self._events is not None:
                self._events.close()

    def _append(self, values: Sequence[str]) -> None:
        with self._writing(LOG):
            csv.writer(self._log).writerow(values)
            self._log.flush()

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # TensorBoard's thread hands it to the next call
            raise TrainingError(
                f"{self._folder / name} cannot be written: {error.strerror or error}; make room "
                f"and go on with --resume"
            ) from error


def _events(folder: Path, step: int) -> SummaryWriter:
    """Events of steps after `step` that a killed run wrote are purged by TensorBoard itself."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "tensorboard is not installed: pip install tensorboard, or set tensorboard=false"
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)
