"""The log of a run for Weights & Biases or MLflow: imported when asked for, never needed."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

from cris_train.errors import TrainingError

PROJECT: Final = "cris"


class Track(Enum):
    """Where the log goes, too."""

    NONE = "none"
    WANDB = "wandb"
    MLFLOW = "mlflow"


class Tracker(Protocol):
    """Takes the lines of a log."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Values by name, such as "val/mean_iou", after a step."""

    def close(self) -> None:
        """The run is over, or stopped."""


def open_tracker(track: Track, folder: Path, recipe: Mapping[str, Any]) -> Tracker | None:
    """Open a run named after its folder; with the same folder again, the same run goes on.

    Where it goes, and by whose account, are the settings of the package itself (`WANDB_MODE`,
    `MLFLOW_TRACKING_URI`, ...).

    Raises:
        TrainingError: the package is not installed, or cannot start.
    """
    if track is Track.NONE:
        return None
    package = _imported(track)
    number = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    try:
        kind = _Wandb if track is Track.WANDB else _Mlflow
        return _Guarded(kind(package, folder, number, recipe), track)
    except Exception as error:  # theirs to choose: network, account, folder
        raise TrainingError(
            f"track={track.value}: it cannot start: {error}; see to its settings, or set track=none"
        ) from error


def _imported(track: Track) -> ModuleType:
    try:
        return import_module(track.value)
    except ImportError as error:
        raise TrainingError(
            f"track={track.value}: {track.value} is not installed: pip install {track.value}, or "
            f"set track=none"
        ) from error


class _Guarded:
    """A run does not end because somebody's server does: its failure is told, once."""

    def __init__(self, tracker: Tracker, track: Track) -> None:
        self._tracker: Tracker | None = tracker
        self._track = track

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        if self._tracker is not None:
            try:
                self._tracker.log(scalars, step)
            except Exception as error:  # theirs to choose
                self._give_up(error)

    def close(self) -> None:
        if self._tracker is not None:
            try:
                self._tracker.close()
            except Exception as error:  # as above
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._tracker = None
        warnings.warn(
            f"track={self._track.value} failed and gets no more of this run: {error}; log.csv has "
            f"all of it",
            stacklevel=3,
        )


class _Wandb:
    def __init__(self, package: Any, folder: Path, number: str, recipe: Mapping[str, Any]) -> None:
        self._run = package.init(
            project=PROJECT,
            name=folder.name,
            id=number,
            resume="allow",
            dir=str(folder),
            config=dict(recipe),
        )

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, package: Any, folder: Path, number: str, recipe: Mapping[str, Any]) -> None:
        self._package = package
        package.set_experiment(PROJECT)
        found = package.search_runs(
            filter_string=f"tags.cris = '{number}'", output_format="list", max_results=1
        )
        package.start_run(
            run_id=found[0].info.run_id if found else None,
            run_name=folder.name,
            tags={"cris": number},
        )
        if not found:
            package.log_params({name: str(value)[:500] for name, value in recipe.items()})

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        # MLflow takes no "@" in a name.
        named = {name.replace("@", "_"): value for name, value in scalars.items()}
        self._package.log_metrics(named, step=step)

    def close(self) -> None:
        self._package.end_run()
