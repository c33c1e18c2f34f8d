"""The course of a run: which batches in which order, from any step on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cris_deploy.errors import InputError
from cris_train.data.batch import Batch
from cris_train.data.choose import Chosen, choose
from cris_train.data.dataset import ReferData
from cris_train.data.feed import FeedPlan
from cris_train.data.loader import Broken, Feed
from cris_train.data.refer import ReferImage
from cris_train.data.splits import open_splits
from cris_train.run.distributed import Process
from cris_train.run.recipe import Lesson, TrainConfig


@dataclass
class _Stage:
    """A lesson, or the whole run where there are none.

    Attributes:
        feed: None once it is over, so that its pictures in memory go.
        steps_per_epoch: Of the feed.
        steps: To do.
        first_step: Steps of the stages before.
        first_epoch: Epochs that the stages before began: every epoch has an order of its own.
        crops: Of its lesson.
    """

    feed: Feed | None
    steps_per_epoch: int
    steps: int
    first_step: int
    first_epoch: int
    crops: int | None


def chosen_pictures(config: TrainConfig) -> Chosen:
    """The pictures that a recipe learns from, and those that it is measured on.

    Raises:
        DataError: the data set cannot be read, or lacks a split.
    """
    root, images = Path(config.data), config.images
    splits = open_splits(
        root, split_by=config.split_by, images=None if images is None else Path(images)
    )
    chosen = choose(
        splits,
        root,
        train=config.train_split,
        val=config.val_split,
        hold_out=config.hold_out,
        seed=config.seed,
    )
    return replace(chosen, val=chosen.val[: config.val_images or None])


class Course:
    """All batches of a run. They depend on recipe and data alone, and so does every position.

    Attributes:
        steps: Optimiser steps of the run.
    """

    def __init__(self, config: TrainConfig, split: Sequence[ReferImage], process: Process) -> None:
        """Look over recipe and pictures.

        Raises:
            InputError: the recipe, the data and the number of processes do not fit.
            DataError: pictures are missing (without `skip_broken`).
        """
        share = config.images_per_batch // process.world
        if config.images_per_batch % process.world == 0 and share % config.accumulate:
            raise InputError(
                f"accumulate is {config.accumulate}, and a process has {share} images of each "
                f"batch: images_per_batch must divide by accumulate times processes"
            )
        rows = share // config.accumulate * config.expressions_per_image
        if rows == 1 and not (config.sync_batch_norm and process.world > 1):
            raise InputError(
                f"a process takes one expression at a time (images_per_batch="
                f"{config.images_per_batch}, accumulate={config.accumulate}, {process.world} "
                f"processes), and batch norm learns from two or more: lower accumulate, raise "
                f"images_per_batch, or share statistics over processes (sync_batch_norm=true)"
            )
        self._device = process.device
        self._stages: list[_Stage] = []
        self._broken: tuple[Broken, ...] = ()
        self.steps = epochs = 0
        for lesson in config.lessons or (None,):
            feed = _feed(config, split, process, lesson)
            each = feed.steps_per_epoch
            steps, crops = config.epochs * each, None
            if lesson is not None:
                steps = max(1, lesson.samples // config.samples_per_step)
                crops = lesson.crops
            if crops is not None and process.world > 1:
                raise InputError(
                    "lessons: one with crops contrasts the objects of a single process: run it "
                    "without torchrun, and start the others from its last.pth (init=...)"
                )
            self._stages.append(_Stage(feed, each, steps, self.steps, epochs, crops))
            self.steps += steps
            epochs += -(-steps // each)

    @property
    def steps_per_epoch(self) -> tuple[int, ...]:
        """Of every stage: what of the data the order depends on."""
        return tuple(stage.steps_per_epoch for stage in self._stages)

    @property
    def broken(self) -> tuple[Broken, ...]:
        """Pictures of this process's share that had to be replaced so far (`skip_broken`)."""
        found = list(self._broken)
        for stage in self._stages:
            found += stage.feed.broken if stage.feed is not None else ()
        return tuple(found)

    def epochs(self, step: int) -> float:
        """Passes over the data that were begun and done after `step` steps."""
        stage = self._stage(step)
        return stage.first_epoch + (step - stage.first_step) / stage.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether the last of these `step` steps was the last of an epoch."""
        stage = self._stage(step - 1)
        return (step - stage.first_step) % stage.steps_per_epoch == 0

    def batches(self, done: int) -> Iterator[Batch]:
        """This process's share of every batch after `done` steps, on its device."""
        for stage in self._stages:
            end = stage.first_step + stage.steps
            while done < end:
                epoch, start = divmod(done - stage.first_step, stage.steps_per_epoch)
                assert stage.feed is not None
                number = stage.first_epoch + epoch
                for batch in stage.feed.epoch(number, start, device=self._device):
                    yield replace(batch, crops=stage.crops)
                    done += 1
                    if done == end:
                        break
            if stage.feed is not None:
                self._broken += stage.feed.broken
                stage.feed = None

    def _stage(self, step: int) -> _Stage:
        return next(s for s in reversed(self._stages) if step >= s.first_step)


def _feed(
    config: TrainConfig, split: Sequence[ReferImage], process: Process, lesson: Lesson | None
) -> Feed:
    words = lesson.max_words if lesson is not None else None
    size = lesson.input_size if lesson is not None else None
    data = ReferData(
        split,
        replace(config.model, input_size=size or config.model.input_size),
        max_words=words,
        sampling=config.target,
        cache=config.cache,
        augment=config.augment,
        strange_words=config.strange_words,
    )
    plan = FeedPlan(
        draw=config.draw,
        images_per_batch=config.images_per_batch,
        expressions_per_image=config.expressions_per_image,
        seed=config.seed,
        workers=config.workers,
        skip_broken=config.skip_broken,
    )
    pin_memory = process.device.type == "cuda"
    return Feed(data, plan, rank=process.rank, world=process.world, pin_memory=pin_memory)


def parts_of(batch: Batch, parts: int) -> list[Batch]:
    """Cut B images with their expressions into `parts` (which divides B) batches in a row."""
    images, rows = len(batch.image) // parts, len(batch.tokens) // parts
    return [
        Batch(
            batch.image[i * images : (i + 1) * images],
            batch.tokens[i * rows : (i + 1) * rows],
            batch.target[i * rows : (i + 1) * rows],
            batch.names[i * images : (i + 1) * images],
            batch.crops,
        )
        for i in range(parts)
    ]
