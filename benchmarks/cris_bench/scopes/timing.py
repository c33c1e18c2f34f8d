"""The reference's speed protocol, interleaved so that a drifting machine cannot favour anyone."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cris_bench.record.rows import spread


@dataclass(frozen=True)
class Timing:
    """Raw times of one contestant.

    Attributes:
        name: The contestant.
        seconds: One entry per timed pass, in order.
    """

    name: str
    seconds: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median time of a pass, milliseconds."""
        return statistics.median(self.seconds) * 1e3

    @property
    def fps(self) -> float:
        """Passes per second at the median."""
        return 1e3 / self.median_ms

    @property
    def spread(self) -> float:
        """Interquartile range over median: how far the machine can be trusted."""
        return spread(self.seconds)


@dataclass(frozen=True)
class Pass:
    """A pass that takes something new each time, the making of which is not timed.

    Attributes:
        run: What is timed; returns when its work is done, with a `Clocked` if it timed itself.
        prepare: Makes the argument of `run`.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], Any]


@dataclass(frozen=True)
class Clocked:
    """What a pass returns that has a better clock than the wall's: a GPU's, say."""

    seconds: float


def clocked(work: Callable[[], object], stream: Any, passes: int = 1) -> Clocked:
    """Queue work on a stream of PyTorch, wait for it, and give the device's mean time for it."""
    import torch

    # PyTorch leaves the constructor untyped.
    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    start.record(stream)
    for _ in range(passes):
        work()
    end.record(stream)
    end.synchronize()
    return Clocked(start.elapsed_time(end) / 1e3 / passes)


def interleave(
    contestants: Mapping[str, Callable[[], object] | Pass],
    *,
    warmup: int,
    iterations: int,
    seed: int = 0,
    enough: Callable[[Mapping[str, Sequence[float]]], bool] = lambda _: False,
    late: Callable[[], bool] = lambda: False,
    tick: Callable[[], object] = lambda: None,
    pause: float = 0.0,
) -> list[Timing]:
    """Time contestants in turn: one pass of each, then the next round, each in an order of its own.

    The reference times one model's passes one by one; here every round also holds the others', so
    that a ratio compares passes made within seconds of each other. The order is random, so that
    nobody always runs behind the same neighbour.

    Args:
        contestants: Name -> a call that returns when its work is done.
        warmup: Untimed rounds first.
        iterations: Timed rounds, at most.
        seed: Of the orders.
        enough: Asked after every timed round, with the times so far, whether they will do.
        late: Asked before every pass whether the time is up: then a round that is not the first is
            given up.
        tick: Called after every pass, for a progress display.
        pause: Seconds before a pass, in which the threads of the one before it stop spinning.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order, shuffle = list(contestants), random.Random(seed).shuffle
    for round_ in range(warmup + iterations):
        shuffle(order)
        for name in order:
            if round_ > warmup and late():
                whole = min(map(len, seconds.values()))
                return [Timing(name, tuple(values[:whole])) for name, values in seconds.items()]
            elapsed = _time(contestants[name], pause)
            if round_ >= warmup:
                seconds[name].append(elapsed)
            tick()
        if round_ >= warmup and enough(seconds):
            break
    return [Timing(name, tuple(values)) for name, values in seconds.items()]


def paired_ratio(baseline: Timing, other: Timing) -> float:
    """How many times faster `other` is: the median over rounds of the ratio within a round."""
    ratios: Sequence[float] = [
        slow / fast for slow, fast in zip(baseline.seconds, other.seconds, strict=True)
    ]
    return statistics.median(ratios)


def _time(contestant: Callable[[], object] | Pass, pause: float) -> float:
    run: Callable[[], object]
    if isinstance(contestant, Pass):
        given, whole = contestant.prepare(), contestant.run

        def run() -> object:
            return whole(given)
    else:
        run = contestant
    time.sleep(pause)
    start = time.perf_counter()
    result = run()
    elapsed = time.perf_counter() - start
    return result.seconds if isinstance(result, Clocked) else elapsed
