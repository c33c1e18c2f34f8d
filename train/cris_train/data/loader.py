"""Batches in an order that depends on seed and epoch alone: not on ranks, workers or restarts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from cris_deploy.errors import InputError
from cris_train.data.batch import Batch, PackedBatch
from cris_train.data.dataset import ReferData
from cris_train.data.feed import FeedPlan
from cris_train.data.pictures import require_pictures
from cris_train.data.rows import Part, Request, Row, Rows, gather, generator, one_cv2_thread
from cris_train.errors import ReaderError

# Batches that each worker prepares ahead: so many and the one in use are in memory.
PREFETCH = 2
# What it is to take a batch over from a worker that has just ended.
LOST = (ConnectionError, EOFError, FileNotFoundError)
# By then the signal of that worker's end is here, too, and not anywhere later in the process.
SIGNAL_SECONDS = 1.0


@dataclass(frozen=True)
class Broken:
    """A picture that was replaced: its file, why, and how many times so far."""

    path: Path
    reason: str
    count: int


class Feed:
    """Endless supply of batches, the same for the same seed.

    The order is a function of (seed, epoch), a row's draws of (seed, epoch, its position in the
    epoch). Rank r takes the r-th contiguous slice of every global batch: side by side, the ranks'
    shares are the batch of one process.
    """

    def __init__(
        self,
        data: ReferData,
        plan: FeedPlan,
        *,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """Look over the plan and the pictures; `pin_memory` for batches that go to a GPU.

        Raises:
            InputError: a plan that `data` or `world` does not allow.
            DataError: pictures are missing (without `skip_broken`).
        """
        if not 0 <= rank < world:
            raise InputError(f"rank is {rank}: with {world} processes it is 0 to {world - 1}")
        if plan.images_per_batch % world:
            raise InputError(
                f"images_per_batch is {plan.images_per_batch}, which does not divide by "
                f"{world} processes: choose a multiple"
            )
        if plan.workers and data.cache:
            raise InputError(
                f"workers is {plan.workers} and cache is on: every worker would keep a copy of its "
                "own; set workers to 0, or cache to false"
            )
        if not plan.skip_broken:
            require_pictures(image.path for image in data.images)
        rows = Rows(data, plan)
        if len(rows) < plan.images_per_batch:
            raise InputError(
                f"images_per_batch is {plan.images_per_batch}, and an epoch has only "
                f"{len(rows)} {plan.draw.value}s: lower it"
            )
        self._plan = plan
        self._count = len(rows)
        self._share = plan.images_per_batch // world
        self._rank = rank
        self._broken: dict[Path, Broken] = {}
        self._order = _Order()
        self._turn = 0
        self._loader: DataLoader[Row] = DataLoader(
            rows,
            batch_sampler=self._order,
            num_workers=plan.workers,
            collate_fn=gather,
            pin_memory=pin_memory,
            multiprocessing_context="fork" if plan.workers else None,
            persistent_workers=plan.workers > 0,
            prefetch_factor=PREFETCH if plan.workers else None,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch; an incomplete last one is left out."""
        return self._count // self._plan.images_per_batch

    @property
    def broken(self) -> tuple[Broken, ...]:
        """What `skip_broken` replaced so far, in this process and its workers."""
        return tuple(self._broken.values())

    def epoch(
        self, epoch: int, start: int = 0, *, device: torch.device | str = "cpu"
    ) -> Iterator[Batch]:
        """This rank's share of every global batch from step `start` of `epoch` on, on `device`.

        One epoch at a time: a new one ends the one before, finished or not.

        Raises:
            InputError: `epoch` or `start` is out of range.
            ImageError: a picture cannot be read (without `skip_broken`).
            DataError: a picture or mask is unusable (without it), or too many are.
        """
        return (packed.unpack(device) for packed in self.packed(epoch, start))

    def packed(self, epoch: int, start: int = 0) -> Iterator[PackedBatch]:
        """As `epoch`, before normalisation: `PackedBatch.unpack` sends bytes, not floats."""
        if epoch < 0 or not 0 <= start <= self.steps_per_epoch:
            raise InputError(
                f"epoch {epoch}, start {start}: give an epoch from 0 on and a step of "
                f"0..{self.steps_per_epoch}"
            )
        self._turn += 1
        return self._read(epoch, start, self._turn)

    def _read(self, epoch: int, start: int, turn: int) -> Iterator[PackedBatch]:
        if turn != self._turn:
            return
        self._order.rows = self._rows(epoch, start)
        for part in self._parts():
            for path, reason in part.broken:
                count = self._broken[path].count if path in self._broken else 0
                self._broken[path] = Broken(path, reason, count + 1)
            if part.batch is None:
                error = part.error
                assert error is not None
                del part  # or error, traceback and frame would be a cycle, and keep the workers
                try:
                    raise error
                finally:
                    del error
            yield part.batch
            if turn != self._turn:
                return

    def _parts(self) -> Iterator[Part]:
        if self._plan.workers:  # the first pass starts them
            one_cv2_thread()
        parts: Iterator[Part] | None = None
        while True:
            with lost_workers_named(self._plan.workers):
                try:
                    # A pass after the first one talks with the workers before its first batch.
                    parts = iter(self._loader) if parts is None else parts
                    part = next(parts)
                except StopIteration:
                    return
                except LOST as error:
                    time.sleep(SIGNAL_SECONDS)
                    raise _ended(error, self._plan.workers) from error
            yield part

    def _rows(self, epoch: int, start: int) -> list[list[Request]]:
        """The rows of this rank in every global batch from `start` on."""
        order = generator(self._plan.seed, epoch, 0).permutation(self._count)
        rows = []
        for step in range(start, self.steps_per_epoch):
            first = step * self._plan.images_per_batch + self._rank * self._share
            rows.append(
                [
                    Request(epoch, position, int(order[position]))
                    for position in range(first, first + self._share)
                ]
            )
        return rows


@contextmanager
def lost_workers_named(workers: int) -> Iterator[None]:
    """Raise ReaderError when torch says that a worker is gone.

    It says so in a signal's handler, wherever the process is: whoever trains is to have this around
    its steps, too.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise _ended(error, workers) from error


def _ended(error: Exception, workers: int) -> ReaderError:
    return ReaderError(
        f"a process that reads pictures ended ({error}): memory is the usual reason, lower "
        f"workers (now {workers}) or images_per_batch"
    )


class _Order:
    """The batch sampler: what the next pass of the loader visits."""

    def __init__(self) -> None:
        self.rows: list[list[Request]] = []

    def __iter__(self) -> Iterator[list[Request]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)
