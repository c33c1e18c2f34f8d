"""The scopes: what a pass of each is, and races in which all of them take turns.

All passes with one image and one expression are one race, so that a scope can be compared with
another one of the same round: end to end with the network alone, say. Each larger batch, and each
larger number of expressions, is a race of its own with its own baseline.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cris_bench.contestants.contestant import Bound, Identity, Network
from cris_bench.contestants.ours import Ours
from cris_bench.contestants.pytorch import Eager
from cris_bench.options import BenchOptions
from cris_bench.record.rows import NotFinite, Role, Row, Scope, finite
from cris_bench.record.schema import Absent
from cris_bench.scopes.inputs import WORDS, Fresh, random_image, random_tokens
from cris_bench.scopes.timing import Clocked, Pass, Timing, interleave, paired_ratio
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.errors import BackendError

# Threads of ONNX Runtime and of OpenMP spin for some milliseconds after their work is done.
_PAUSE: Final = 0.01
# What the baseline has to do for the same mask: it keeps nothing of an image or an expression.
_AGAINST: Final = {
    Scope.NETWORK: Scope.NETWORK,
    Scope.END_TO_END: Scope.END_TO_END,
    Scope.FROM_BYTES: Scope.FROM_BYTES,
    Scope.EXPRESSION: Scope.END_TO_END,
    Scope.REPEATED_EXPRESSION: Scope.END_TO_END,
    Scope.REPEATED_IMAGE: Scope.END_TO_END,
}
_ONE_OF = "its pass makes one mask: it takes the expressions one by one"

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


StageTimes = dict[tuple[str, Shape], dict[GraphName, list[float]]]


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
    """

    scope: Scope
    identity: Identity
    masks: int
    run: Callable[[], object] | Pass
    logit_error: float | NotFinite | None = None
    note: str = ""

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

    def note(self, name: str, shape: Shape, error: BackendError) -> None:
        """Note that a contestant cannot run a shape: it must not lose everyone's times."""
        who = f"{name}, {shape.batch} images x {shape.expressions} expressions"
        self.absent.append(Absent(who, str(error)))


@dataclass
class Results:
    """What the races gave.

    Attributes:
        rows: Of the record.
        stages: Contestant and shape -> stage -> seconds in each pass of the network, warm-up
            included.
    """

    rows: list[Row] = field(default_factory=list)
    stages: StageTimes = field(default_factory=dict)


def shapes(options: BenchOptions) -> list[Shape]:
    """The races: always one image and one expression, then larger batches, then expressions."""
    found = [Shape(1, 1)]
    found += [Shape(batch, 1) for batch in sorted(set(options.batches)) if batch > 1]
    return found + [Shape(1, count) for count in sorted(set(options.expressions)) if count > 1]


def race(field_: Field, shape: Shape, options: BenchOptions, results: Results, tick: Tick) -> None:
    """Run one race and add its rows to the results."""
    entries = list(_entries(field_, shape, options, results.stages))
    timings = interleave(
        {entry.key: entry.run for entry in entries},
        warmup=options.warmup,
        iterations=options.iterations,
        tick=tick,
        pause=_PAUSE,
    )
    raced = list(zip(entries, timings, strict=True))
    baselines = {e.scope: (e, t) for e, t in raced if e.identity.role is Role.BASELINE}
    order = list(Scope)
    for entry, timing in sorted(raced, key=lambda pair: order.index(pair[0].scope)):
        results.rows.append(_row(entry, timing, shape, baselines))


def _row(
    entry: Entry, timing: Timing, shape: Shape, baselines: dict[Scope, tuple[Entry, Timing]]
) -> Row:
    ratio = None
    against = _AGAINST.get(entry.scope)
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


def _entries(
    field_: Field, shape: Shape, options: BenchOptions, stages: StageTimes
) -> Iterator[Entry]:
    wanted = set(options.scopes)
    fresh = Fresh(options.image_height, options.image_width)
    image = random_image(shape.batch, field_.input_size)
    tokens = random_tokens(shape.masks, field_.word_len, field_.vocabulary)
    expected: NDArray[Any] | None = None
    if field_.eager is not None:
        expected = yield from _baseline(field_.eager, shape, wanted, fresh, image, tokens)
    if Scope.NETWORK in wanted:
        for peer in field_.peers:
            try:
                bound = peer.bind(image, tokens)
            except BackendError as error:
                field_.note(peer.identity.name, shape, error)
                continue
            yield _network(peer.identity, bound, bound.run, shape, expected)
    for engine in field_.ours:
        # An engine's network pass is beside its other passes: what is compared is close in time.
        if Scope.NETWORK in wanted:
            bound = engine.bind(image, tokens)
            try:
                run = _noting(engine, bound, stages.setdefault((engine.identity.name, shape), {}))
                entry = _network(engine.identity, bound, run, shape, expected)
            except BackendError as error:  # a plan without a profile for this batch, say
                field_.note(engine.identity.name, shape, error)
            else:
                yield entry
        if shape.batch == 1:
            yield from _engine_scopes(engine, shape, wanted, fresh)


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
    needed = {_AGAINST[scope] for scope in wanted & _AGAINST.keys()}
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
    who: Identity,
    bound: Bound,
    run: Callable[[], object],
    shape: Shape,
    expected: NDArray[Any] | None,
) -> Entry:
    logits = bound.logits()  # compiles what is compiled when it is first run, too
    error = None
    if expected is not None:
        error = finite(float(np.abs(logits[: len(expected)] - expected).max()))
    return Entry(Scope.NETWORK, who, shape.masks, run, error)


def _noting(engine: Ours, bound: Bound, kept: dict[GraphName, list[float]]) -> Callable[[], object]:
    """The pass, which keeps what its stages took."""

    def run() -> object:
        result = bound.run()
        for stage, seconds in engine.stage_seconds().items():
            kept.setdefault(stage, []).append(seconds)
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
                lambda: (fresh.picture(), fresh.expression()),
            )
        elif Scope.DEVICE in wanted:
            from cris_bench.contestants.cuda import device_pass

            passes[Scope.DEVICE] = Pass(
                device_pass(engine.engine, known, who.place), fresh.expression
            )
    for scope in Scope:
        if scope in wanted and scope in passes:
            yield Entry(scope, who, count, passes[scope])


def stage_medians(
    stages: StageTimes, iterations: int
) -> Iterator[tuple[str, Shape, GraphName, float]]:
    """Contestant, shape, stage and its median seconds over the timed passes."""
    for (name, shape), kept in stages.items():
        for stage, seconds in kept.items():
            yield name, shape, stage, statistics.median(seconds[-iterations:])
