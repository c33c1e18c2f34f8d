"""What a loader's worker does: read samples and put them into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from torch.utils.data import Dataset

from cris_deploy.errors import CrisError, DataError, ImageError
from cris_train.data.batch import PackedBatch, Sample, pack
from cris_train.data.dataset import ReferData
from cris_train.data.feed import Draw, FeedPlan
from cris_train.errors import ReaderError

# So many unusable pictures in a row are not a few broken ones but a folder that is not there.
MOST_BROKEN_IN_A_ROW = 20

Entry: TypeAlias = tuple[int, int]
"""Picture, object of it; the object is -1 where all of them are drawn from."""


@dataclass(frozen=True)
class Request:
    """A row of a batch to be read: where in the epoch it is, and what the order puts there."""

    epoch: int
    position: int
    entry: int


@dataclass(frozen=True)
class Row:
    """A sample, or the error that there is none; and what was passed over for it."""

    sample: Sample | None
    error: CrisError | None
    broken: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class Part:
    """What a worker hands back: a batch or an error, and (file, reason) of what it replaced."""

    batch: PackedBatch | None
    error: CrisError | None
    broken: tuple[tuple[Path, str], ...]

    def pin_memory(self) -> Part:
        """As torch's loader asks it for a GPU."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class Rows(Dataset[Row]):
    """Reads samples. Errors are values: torch would bury them in a traceback."""

    def __init__(self, data: ReferData, plan: FeedPlan) -> None:
        self.entries = _entries(data, plan.draw)
        self._data, self._plan = data, plan

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, request: Request) -> Row:
        rng = generator(self._plan.seed, request.epoch, request.position + 1)
        entry = self.entries[request.entry]
        broken: list[tuple[Path, str]] = []
        while True:
            picture, said = self._draw(entry, rng)
            try:
                return Row(self._data.sample(picture, said), None, tuple(broken))
            except (ImageError, DataError) as error:
                if not self._plan.skip_broken:
                    return Row(None, error, ())
                broken.append((self._data.images[picture].path, str(error)))
                if len(broken) == MOST_BROKEN_IN_A_ROW:
                    return Row(None, _given_up(broken), tuple(broken))
            entry = self.entries[int(rng.integers(len(self.entries)))]

    def _draw(self, entry: Entry, rng: np.random.Generator) -> tuple[int, list[tuple[int, int]]]:
        """Which expressions of which objects, k times."""
        picture, only = entry
        objects = self._data.images[picture].objects
        turn = [only] if only >= 0 else rng.permutation(len(objects)).tolist()
        said = []
        for draw in range(self._plan.expressions_per_image):
            which = turn[draw % len(turn)]
            said.append((which, int(rng.integers(len(objects[which].expressions)))))
        return picture, said


def gather(rows: Sequence[Row]) -> Part:
    """Put rows together; the first error is the part's."""
    broken = tuple(pair for row in rows for pair in row.broken)
    error = next((row.error for row in rows if row.error is not None), None)
    if error is not None:
        return Part(None, error, broken)
    try:
        return Part(pack([row.sample for row in rows if row.sample is not None]), None, broken)
    except RuntimeError as failure:
        if "shared memory" not in str(failure):
            raise
        return Part(None, _not_shared(failure), broken)


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Stream 0 orders an epoch, stream 1 + position draws for that position."""
    return np.random.default_rng([seed, epoch, stream])


def one_cv2_thread() -> None:
    """End OpenCV's thread pool in this process, for good.

    A forked process has the pool's records and none of its threads: its first call of OpenCV, even
    `setNumThreads`, would wait for them for ever. And a pool that is ended and made again many
    times crashes now and then (OpenCV 5.0).
    """
    cv2.setNumThreads(1)


def _entries(data: ReferData, draw: Draw) -> list[Entry]:
    if draw is Draw.IMAGE:
        return [(picture, -1) for picture in range(len(data.images))]
    return [
        (picture, which)
        for picture, image in enumerate(data.images)
        for which in range(len(image.objects))
    ]


def _not_shared(failure: RuntimeError) -> ReaderError:
    return ReaderError(
        f"processes that read pictures share too little memory ({failure}): a container's /dev/shm "
        "is 64 MB unless it is given more (docker run --shm-size=1g); or lower workers or "
        "images_per_batch; workers=0 needs none"
    )


def _given_up(broken: Sequence[tuple[Path, str]]) -> DataError:
    path, reason = broken[-1]
    return DataError(
        f"{len(broken)} pictures in a row cannot be used, the last one {path}: {reason}. "
        "These are too many to skip: check the folder with cris-data check"
    )
