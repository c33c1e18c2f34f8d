"""Races, in which everyone takes turns in all scopes.

All passes with one image and one expression are one race, so that a scope can be compared with
another one of the same round: end to end with the network alone, say. Each larger batch, and each
larger number of expressions, is a race of its own with its own baseline.

A race ends when the intervals of all ratios are tight, when it has had its rounds, or when its time
is up. If its time does not do for the least number of rounds, the slowest are left out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np

from cris_bench.budget import NO_TIME, Budget, Cost, who_fits
from cris_bench.options import WARMUP, BenchOptions
from cris_bench.record.intervals import LEAST_ROUNDS, interval
from cris_bench.record.rows import AGAINST, Role, Row, Scope, arithmetic
from cris_bench.scopes.entries import Entry, Field, Shape, entries_of
from cris_bench.scopes.timing import Timing, interleave, paired_ratio
from cris_deploy.bundle.manifest import GraphName

# Threads of ONNX Runtime and of OpenMP spin for some milliseconds after their work is done.
_PAUSE: Final = 0.01
TIGHT: Final = 0.05
"""Width of a ratio's interval over its middle that will do: 0.039 is what no rounds take away."""

Tick = Callable[[], object]
StageTimes = dict[tuple[str, Shape], dict[GraphName, float]]
"""Contestant and shape -> stage -> median seconds over the timed passes."""


@dataclass
class Results:
    """What the races gave.

    Attributes:
        rows: Of the record.
        stages: What the stages of each engine took.
    """

    rows: list[Row] = field(default_factory=list)
    stages: StageTimes = field(default_factory=dict)


def shapes(options: BenchOptions) -> list[Shape]:
    """The races: always one image and one expression, then larger batches, then expressions."""
    found = [Shape(1, 1)]
    found += [Shape(batch, 1) for batch in sorted(set(options.batches)) if batch > 1]
    return found + [Shape(1, count) for count in sorted(set(options.expressions)) if count > 1]


def race(
    field_: Field,
    shape: Shape,
    options: BenchOptions,
    results: Results,
    tick: Tick,
    budget: Budget | None = None,
) -> None:
    """Run one race and add its rows to the results.

    Args:
        field_: Who takes part.
        shape: What a pass takes.
        options: What is timed, and how often.
        results: Added to.
        tick: Called after every pass.
        budget: Of this race; None for no end.
    """
    budget = budget or Budget(None)
    entries = {entry.key: entry for entry in entries_of(field_, shape, options, budget)}

    def timed(
        warmup: int,
        iterations: int,
        enough: Callable[[Mapping[str, Sequence[float]]], bool] = lambda _: False,
    ) -> list[Timing]:
        return interleave(
            {key: entry.run for key, entry in entries.items()},
            warmup=warmup,
            iterations=iterations,
            seed=options.seed,
            enough=enough,
            late=lambda: budget.left == 0,
            tick=tick,
            pause=_PAUSE,
        )

    everyone = len(entries)

    def keep(costs: Sequence[Cost], rounds: int) -> None:
        nonlocal entries
        kept = who_fits(costs, budget.left / rounds)
        for key in [key for key in entries if key not in kept]:
            field_.note(key, shape, NO_TIME)
        entries = {key: entries[key] for key in kept}

    # Before two untimed rounds, which may be all that there is time for.
    keep([_cost(entry, entry.first) for entry in entries.values()], WARMUP + LEAST_ROUNDS)
    timed(0, 1)  # cold: what is allocated, is allocated now
    began = budget.elapsed
    warm = timed(0, 1)
    keep(_costs(entries, warm, budget.elapsed - began), LEAST_ROUNDS)
    untimed = options.warmup - WARMUP if len(entries) == everyone else 0
    for entry in entries.values():
        entry.stages.clear()
    ends: list[float] = []  # of the timed rounds

    def enough(seconds: Mapping[str, Sequence[float]]) -> bool:
        ends.append(budget.elapsed)
        longest = max((end - start for start, end in pairwise(ends)), default=0.0)
        return longest >= budget.left or (options.iterations is None and _tight(entries, seconds))

    timings = timed(max(0, untimed), options.most_rounds, enough)
    raced = list(zip(entries.values(), timings, strict=True))
    for entry, timing in raced:
        passes = entry.stages[-len(timing.seconds) :]
        if passes:
            results.stages[entry.identity.name, shape] = {
                stage: statistics.median(each[stage] for each in passes) for stage in passes[0]
            }
    baselines = {e.scope: (e, t) for e, t in raced if e.identity.role is Role.BASELINE}
    order = list(Scope)
    for entry, timing in sorted(raced, key=lambda pair: order.index(pair[0].scope)):
        results.rows.append(_row(entry, timing, shape, baselines))


def _costs(entries: Mapping[str, Entry], warm: Sequence[Timing], took: float) -> list[Cost]:
    """What each takes of a round that took so many seconds, with what prepares its passes."""
    whole = sum(timing.seconds[0] for timing in warm) or 1.0
    return [
        _cost(entry, timing.seconds[0] * took / whole)
        for entry, timing in zip(entries.values(), warm, strict=True)
    ]


def _cost(entry: Entry, seconds: float) -> Cost:
    who = entry.identity
    group = entry.scope, who.role, arithmetic(who.compute)
    return Cost(entry.key, seconds, entry.masks, group, stays=who.role is Role.BASELINE)


def _tight(entries: Mapping[str, Entry], seconds: Mapping[str, Sequence[float]]) -> bool:
    """Whether all ratios to the baseline are known well; without one, all times."""
    baselines = {
        entry.scope: np.asarray(seconds[key])
        for key, entry in entries.items()
        if entry.identity.role is Role.BASELINE
    }
    for key, entry in entries.items():
        times = np.asarray(seconds[key])
        slow = baselines.get(AGAINST.get(entry.scope, entry.scope))
        if entry.scope is Scope.OVERHEAD:
            continue
        found = interval(times if slow is None else slow / times)
        if found is None or found.width > TIGHT:
            return False
    return True


def _row(
    entry: Entry, timing: Timing, shape: Shape, baselines: dict[Scope, tuple[Entry, Timing]]
) -> Row:
    ratio = None
    against = AGAINST.get(entry.scope)
    if against in baselines:
        slow, slow_timing = baselines[against]
        ratio = paired_ratio(slow_timing, timing) * entry.masks / slow.masks
    who = entry.identity
    return Row(
        scope=entry.scope,
        name=who.name,
        role=who.role,
        device=str(who.place),
        compute=who.compute,
        batch=shape.batch,
        expressions=shape.expressions,
        masks=entry.masks,
        seconds=timing.seconds,
        ratio=ratio,
        logit_error=entry.logit_error,
        bundle=who.bundle,
        note=entry.note,
    )
