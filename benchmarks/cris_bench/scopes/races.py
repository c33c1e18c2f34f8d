"""The scopes: what a pass of each is, and races in which all of them take turns.

All passes with one image and one expression are one race, so that a scope can be compared with
another one of the same round: end to end with the network alone, say. Each larger batch, and each
larger number of expressions, is a race of its own with its own baseline.

A race ends when the intervals of all ratios are tight, when it has had its rounds, or when its time
is up. If its time does not do for the least number of rounds, the slowest are left out.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cris_bench.budget import NO_TIME, Budget, Cost, OutOfTime, who_fits
from cris_bench.contestants.contestant import Bound, Identity, Network
from cris_bench.contestants.ours import Ours
from cris_bench.contestants.pytorch import EAGER_SHARED, Eager
from cris_bench.options import BenchOptions
from cris_bench.record.intervals import LEAST_ROUNDS, interval
from cris_bench.record.rows import AGAINST, NotFinite, Role, Row, Scope, arithmetic, finite
from cris_bench.record.schema import Absent
from cris_bench.scopes.inputs import WORDS, Fresh, random_image, random_tokens
from cris_bench.scopes.timing import Clocked, Pass, Timing, interleave, paired_ratio
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.errors import BackendError

# Threads of ONNX Runtime and of OpenMP spin for some milliseconds after their work is done.
_PAUSE: Final = 0.01
# Share of a race's time that peers may take to be compiled.
_PREPARING: Final = 0.6
_ONE_OF: Final = "its pass makes one mask: it takes them one by one"
TIGHT: Final = 0.03
"""Width of a ratio's interval over its middle that will do."""

Tick = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    """How much a pass takes.

    Attributes:
        batch: Images.
        expressions: Expressions for each; more than one only of a single image.
    """

    batch: int
    expressions: int

    @property
    def masks(self) -> int:
        """Masks that come of it."""
        return self.batch * self.expressions


StageTimes = dict[tuple[str, Shape], dict[GraphName, float]]
"""Contestant and shape -> stage -> median seconds over the timed passes."""


@dataclass(frozen=True)
class Entry:
    """One contestant in one scope of a race.

    Attributes:
        scope: What is timed.
        identity: Who runs.
        masks: Masks of a pass.
        run: The pass.
        logit_error: Difference from the baseline's logits.
        note: For the record.
        stages: Filled by every pass of an engine's network with the seconds of its stages.
    """

    scope: Scope
    identity: Identity
    masks: int
    run: Callable[[], object] | Pass
    logit_error: float | NotFinite | None = None
    note: str = ""
    stages: list[dict[GraphName, float]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Its name in the race."""
        return f"{self.scope}: {self.identity.name}"


@dataclass(frozen=True)
class Field:
    """Everyone who takes part in a race.

    Attributes:
        eager: The baseline; None without PyTorch's model.
        peers: Other ways to run the model.
        ours: Engines.
        input_size: Of the model.
        word_len: Of the model.
        vocabulary: Of the model.
        absent: Peers that could not run, and why; added to.
    """

    eager: Eager | None
    peers: Sequence[Network]
    ours: Sequence[Ours]
    input_size: int
    word_len: int
    vocabulary: int
    absent: list[Absent] = field(default_factory=list)

    def note(self, name: str, shape: Shape, why: str) -> None:
        """Note that a contestant did not run a shape: it must not lose everyone's times."""
        who = f"{name}, {shape.batch} images x {shape.expressions} expressions"
        self.absent.append(Absent(who, why))


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
    entries = {entry.key: entry for entry in _entries(field_, shape, options, budget)}

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
            tick=tick,
            pause=_PAUSE,
        )

    timed(0, 1)  # cold: what is allocated, is allocated now
    began = budget.elapsed
    first = timed(0, 1)
    took = budget.elapsed - began  # with what prepares the passes
    total = sum(timing.seconds[0] for timing in first) or 1.0
    costs = [
        _cost(entry, timing.seconds[0] * took / total)
        for entry, timing in zip(entries.values(), first, strict=True)
    ]
    kept = who_fits(costs, budget.left / LEAST_ROUNDS)
    untimed = max(0, options.warmup - 2) if len(kept) == len(entries) else 0  # two were before
    for key in [key for key in entries if key not in kept]:
        field_.note(key, shape, NO_TIME)
    entries = {key: entries[key] for key in kept}
    for entry in entries.values():
        entry.stages.clear()
    last = [budget.elapsed]

    def enough(seconds: Mapping[str, Sequence[float]]) -> bool:
        now = budget.elapsed
        round_, last[0] = now - last[0], now
        return round_ > budget.left or (options.iterations is None and _tight(entries, seconds))

    timings = timed(untimed, options.most_rounds, enough)
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


def _entries(field_: Field, shape: Shape, options: BenchOptions, budget: Budget) -> Iterator[Entry]:
    wanted = set(options.scopes)
    fresh = Fresh(options.image_height, options.image_width)
    image = random_image(shape.batch, field_.input_size)
    tokens = random_tokens(shape.masks, field_.word_len, field_.vocabulary)
    expected: NDArray[Any] | None = None
    if field_.eager is not None:
        expected = yield from _baseline(field_.eager, shape, wanted, fresh, image, tokens)
    for engine in field_.ours:
        # An engine's network pass is beside its other passes: what is compared is close in time.
        if Scope.NETWORK in wanted:
            bound = engine.bind(image, tokens)
            try:
                entry = _network(engine.identity, bound, shape.masks, expected)
            except BackendError as error:  # a plan without a profile for this batch, say
                field_.note(engine.identity.name, shape, str(error))
            else:
                yield dataclasses.replace(entry, run=_noting(engine, bound, entry.stages))
        if shape.batch == 1:
            yield from _engine_scopes(engine, shape, wanted, fresh)
    if Scope.NETWORK not in wanted:
        return
    preparing = budget.part(_PREPARING)
    for peer in field_.peers:
        if peer.identity.name == EAGER_SHARED and shape.expressions == 1:
            continue  # it is the baseline
        masks = 1 if peer.single else shape.masks
        try:
            with preparing.cut():  # compiling may take minutes
                bound = peer.bind(image[:1] if peer.single else image, tokens[:masks])
                note = _ONE_OF if masks < shape.masks else ""
                entry = _network(peer.identity, bound, masks, expected, note)
        except BackendError as error:
            field_.note(peer.identity.name, shape, str(error))
        except OutOfTime:
            field_.note(peer.identity.name, shape, NO_TIME)
        else:
            yield entry


def _baseline(
    eager: Eager,
    shape: Shape,
    wanted: set[Scope],
    fresh: Fresh,
    image: NDArray[Any],
    tokens: NDArray[Any],
) -> Generator[Entry, None, NDArray[Any] | None]:
    """The baseline's entries; returns its logits, one for each image."""
    who = eager.identity
    note = _ONE_OF if shape.expressions > 1 else ""
    expected = None
    if Scope.NETWORK in wanted:
        bound = eager.bind(image, tokens[: shape.batch])
        expected = bound.logits()
        yield Entry(Scope.NETWORK, who, shape.batch, bound.run, 0.0, note)
    needed = {AGAINST[scope] for scope in wanted & AGAINST.keys()}
    if shape.batch == 1 and Scope.END_TO_END in needed:
        whole = Pass(
            lambda given: eager.segment(*given), lambda: (fresh.picture(), fresh.expression())
        )
        yield Entry(Scope.END_TO_END, who, 1, whole, note=note)
    if shape.masks == 1 and Scope.FROM_BYTES in needed:
        read = Pass(
            lambda given: eager.segment_file(*given), lambda: (fresh.file(), fresh.expression())
        )
        yield Entry(Scope.FROM_BYTES, who, 1, read)
    return expected


def _network(
    who: Identity, bound: Bound, masks: int, expected: NDArray[Any] | None, note: str = ""
) -> Entry:
    logits = bound.logits()  # compiles what is compiled when it is first run, too
    error = None
    if expected is not None:
        count = min(len(logits), len(expected))
        error = finite(float(np.abs(logits[:count] - expected[:count]).max()))
    return Entry(Scope.NETWORK, who, masks, bound.run, error, note)


def _noting(engine: Ours, bound: Bound, kept: list[dict[GraphName, float]]) -> Callable[[], object]:
    """The pass, which keeps what its stages took."""

    def run() -> object:
        result = bound.run()
        kept.append(engine.stage_seconds())
        return result

    return run


def _engine_scopes(engine: Ours, shape: Shape, wanted: set[Scope], fresh: Fresh) -> Iterator[Entry]:
    """An engine as its users call it, its caches on: what must be new to it is new."""
    segment, who, count = engine.engine.segment, engine.identity, shape.expressions
    passes: dict[Scope, Pass] = {
        Scope.END_TO_END: Pass(
            lambda given: segment(*given), lambda: (fresh.picture(), fresh.expressions(count))
        )
    }
    if count == 1:
        known = fresh.picture().copy()
        scene = engine.engine.encode_image(known)
        scene.segment(WORDS)
        passes |= {
            Scope.FROM_BYTES: Pass(
                lambda given: segment(*given), lambda: (fresh.file(), fresh.expression())
            ),
            Scope.EXPRESSION: Pass(scene.segment, fresh.expression),
            Scope.REPEATED_EXPRESSION: Pass(lambda picture: segment(picture, WORDS), fresh.picture),
            Scope.REPEATED_IMAGE: Pass(lambda words: segment(known, words), fresh.expression),
        }
        if not who.place.on_gpu:
            passes[Scope.OVERHEAD] = Pass(
                lambda given: Clocked(engine.overhead(*given)),
                lambda: (engine.engine.pipeline.prepare(fresh.picture()), fresh.expression()),
            )
        elif Scope.DEVICE in wanted:
            from cris_bench.contestants.cuda import device_pass

            passes[Scope.DEVICE] = Pass(
                device_pass(engine.engine, known, who.place), fresh.expression
            )
    for scope in Scope:
        if scope in wanted and scope in passes:
            yield Entry(scope, who, count, passes[scope])
