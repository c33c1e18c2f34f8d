"""How many samples a second the loader gives, and where the time of one goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from cris_deploy.errors import InputError
from cris_deploy.pixels import image as images
from cris_train.data.batch import PackedBatch, Sample, pack
from cris_train.data.dataset import ReferData, read_picture
from cris_train.data.feed import Draw, FeedPlan
from cris_train.data.loader import Feed
from cris_train.data.rows import one_cv2_thread
from cris_train.data.target import mask_target

PROFILED = 200  # samples


@dataclass(frozen=True)
class Speed:
    """What was measured; a sample is a picture with one expression.

    Attributes:
        per_second: Samples per second, as bytes: what goes to a device.
        floats_per_second: Samples per second, normalised to float32 by this process.
        workers: Processes that read.
        images_per_batch: Pictures in a batch.
        input_size: Side of the square in pixels.
        mean_bytes: Of the picture files.
        steps: Step -> milliseconds of one core for a sample, measured in this process alone.
    """

    per_second: float
    floats_per_second: float
    workers: int
    images_per_batch: int
    input_size: int
    mean_bytes: float
    steps: dict[str, float]


def measure(data: ReferData, *, workers: int, images_per_batch: int, seconds: float) -> Speed:
    """Feed for some seconds, as bytes and as floats, then profile the steps.

    Raises:
        InputError: fewer objects than a batch, or `seconds` is not positive.
        ImageError, DataError: the data set is unusable.
    """
    if not seconds > 0:
        raise InputError(f"seconds must be positive, not {seconds:g}")
    plan = FeedPlan(Draw.OBJECT, images_per_batch, 1, seed=0, workers=workers, skip_broken=False)
    feed = Feed(data, plan)
    rate, floats_rate = (_rate(feed, seconds / 2, floats=floats) for floats in (False, True))
    del feed  # ends the workers: the profile has the machine to itself
    sizes = [image.path.stat().st_size for image in data.images]
    return Speed(
        rate,
        floats_rate,
        workers,
        images_per_batch,
        data.config.input_size,
        sum(sizes) / len(sizes),
        profile(data, images_per_batch),
    )


def _rate(feed: Feed, seconds: float, *, floats: bool) -> float:
    """Samples per second, after the first batch, which waits for the workers' start."""
    batches = _endless(feed)
    first = next(batches)
    started = time.perf_counter()
    samples = 0
    while not samples or time.perf_counter() - started < seconds:
        batch = next(batches)
        samples += len(batch.names)
        if floats:
            batch.unpack()
    del first
    return samples / (time.perf_counter() - started)


def _endless(feed: Feed) -> Iterator[PackedBatch]:
    epoch = 0
    while True:
        yield from feed.packed(epoch)
        epoch += 1


def profile(data: ReferData, images_per_batch: int) -> dict[str, float]:
    """Milliseconds of one core that each step takes for a sample.

    Raises:
        ImageError, DataError: the data set is unusable.
    """
    count = min(images_per_batch, len(data))
    clock, rounds = _Clock(), max(1, PROFILED // count)
    one_cv2_thread()  # as in a worker
    _one_batch(data, range(count), _Clock())  # pays for tables and fresh memory
    for number in range(rounds):
        chosen = [(number * count + row) % len(data) for row in range(count)]
        _one_batch(data, chosen, clock)
    return {step: 1e3 * spent / (rounds * count) for step, spent in clock.seconds.items()}


def _one_batch(data: ReferData, chosen: Sequence[int], clock: _Clock) -> None:
    size, samples = data.config.input_size, []
    for index in chosen:
        image = data.images[index]
        item = image.objects[0]
        with clock.step("read and decode"):
            picture = read_picture(image)
        with clock.step("letterbox"):
            square = images.letterbox(picture, size)
        with clock.step("mask"):
            mask = image.mask(item)
        with clock.step("target"):
            target = np.rint(mask_target(mask, size, data.sampling) * 255).astype(np.uint8)
        with clock.step("tokens"):
            tokens = data.tokens(item.expressions[0])
        samples.append(Sample(square, tokens[None], target[None], image.path.name))
    with clock.step("collate"):
        packed = pack(samples)
    with clock.step("normalise"):
        packed.unpack()


class _Clock:
    """Processor time by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.thread_time()
        yield
        self.seconds[name] += time.thread_time() - started
