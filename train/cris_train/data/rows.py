"""What a loader's worker does: read the samples of its places and put them into a batch."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from cris_deploy.errors import CrisError, DataError, ImageError
from cris_train.data.batch import PackedBatch, Sample, pack
from cris_train.data.dataset import ReferData
from cris_train.data.feed import Draw, FeedPlan

# So many unusable pictures in a row are not a few broken ones but a folder that is not there.
MOST_BROKEN_IN_A_ROW = 20

Entry: TypeAlias = tuple[int, int]
"""Picture, object of it; the object is -1 where all of them are drawn from."""


@dataclass(frozen=True)
class Place:
    """A row of a batch: where in the epoch it is, what the order puts there, and its slot."""

    epoch: int
    position: int
    entry: int
    slot: int


@dataclass(frozen=True)
class Row:
    """A sample, or the error that there is none; and what was passed over for it."""

    sample: Sample | None
    error: CrisError | None
    broken: tuple[tuple[Path, str], ...]
    slot: int


@dataclass(frozen=True)
class Part:
    """What a worker hands back: a batch or an error, and (file, reason) of what it replaced.

    With a ring, the squares of `batch` are empty and lie in its `slot`.
    """

    batch: PackedBatch | None
    error: CrisError | None
    broken: tuple[tuple[Path, str], ...]
    slot: int


class Ring:
    """Memory that this process shares with the workers it forks: squares of a few batches.

    Through a pipe, a batch of 64 at 416 costs a fifth of all work in copies. torch's way is
    /dev/shm, which containers often limit to 64 MB, two such batches; this memory has no name and
    no such limit. It is passed on by fork alone.
    """

    def __init__(self, slots: int, images: int, size: int) -> None:
        self.slots = slots
        shape = (slots, images, size, size, 3)
        memory = mmap.mmap(-1, slots * images * size * size * 3)
        self._squares = np.frombuffer(memory, np.uint8).reshape(shape)

    def squares(self, slot: int) -> npt.NDArray[np.uint8]:
        """The squares of a slot, (images, S, S, 3) uint8, to write and to read."""
        return np.asarray(self._squares[slot])


class Rows(Dataset[Row]):
    """Reads the sample of a place. Errors are values: torch would bury them in a traceback."""

    def __init__(self, data: ReferData, plan: FeedPlan) -> None:
        self.entries = _entries(data, plan.draw)
        self._data, self._plan = data, plan

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, place: Place) -> Row:
        rng = generator(self._plan.seed, place.epoch, place.position + 1)
        entry = self.entries[place.entry]
        broken: list[tuple[Path, str]] = []
        while True:
            picture, said = self._draw(entry, rng)
            try:
                sample = self._data.sample(picture, said)
                return Row(sample, None, tuple(broken), place.slot)
            except (ImageError, DataError) as error:
                if not self._plan.skip_broken:
                    return Row(None, error, (), place.slot)
                broken.append((self._data.images[picture].path, str(error)))
                if len(broken) == MOST_BROKEN_IN_A_ROW:
                    return Row(None, _given_up(broken), tuple(broken), place.slot)
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


@dataclass(frozen=True)
class Gather:
    """Rows to a part; the squares go into the ring where there is one."""

    ring: Ring | None

    def __call__(self, rows: Sequence[Row]) -> Part:
        """Put rows of one slot together; the first error is the part's."""
        broken = tuple(pair for row in rows for pair in row.broken)
        slot = rows[0].slot
        error = next((row.error for row in rows if row.error is not None), None)
        if error is not None:
            return Part(None, error, broken, slot)
        samples = [row.sample for row in rows if row.sample is not None]
        squares = None if self.ring is None else self.ring.squares(slot)
        return Part(pack(samples, squares), None, broken, slot)


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


def _given_up(broken: Sequence[tuple[Path, str]]) -> DataError:
    path, reason = broken[-1]
    return DataError(
        f"{len(broken)} pictures in a row cannot be used, the last one {path}: {reason}. "
        "These are too many to skip: check the folder with cris-data check"
    )
