"""The scopes: what a pass of each is, of everyone who takes part."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cris_bench.budget import NO_TIME, Budget, OutOfTime
from cris_bench.contestants.contestant import Bound, Identity, Network
from cris_bench.contestants.ours import Ours
from cris_bench.contestants.pytorch import EAGER_SHARED, Eager
from cris_bench.options import BenchOptions
from cris_bench.record.rows import AGAINST, NotFinite, Scope, finite
from cris_bench.record.schema import Absent
from cris_bench.scopes.inputs import WORDS, Fresh, random_image, random_tokens
from cris_bench.scopes.timing import Clocked, Pass
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.errors import BackendError

# Share of a race's time that peers may take to be compiled.
_PREPARING: Final = 0.6
_ONE_OF: Final = "its pass makes one mask: it takes them one by one"


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
        first: Seconds of its first pass, which was made when the entry was; 0 if none was.
        stages: Filled by every pass of an engine's network with the seconds of its stages.
    """

    scope: Scope
    identity: Identity
    masks: int
    run: Callable[[], object] | Pass
    logit_error: float | NotFinite | None = None
    note: str = ""
    first: float = 0.0
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


def entries_of(
    field_: Field, shape: Shape, options: BenchOptions, budget: Budget
) -> Iterator[Entry]:
    """Everyone in every scope of a race, the baseline first; made as they are asked for.

    Args:
        field_: Who takes part; who cannot, or has no time to be compiled, is noted there.
        shape: What a pass takes.
        options: What is timed.
        budget: Of the race.
    """
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
    start = time.perf_counter()
    logits = bound.logits()  # compiles what is compiled when it is first run, too
    first = time.perf_counter() - start
    error = None
    if expected is not None:
        count = min(len(logits), len(expected))
        error = finite(float(np.abs(logits[:count] - expected[:count]).max()))
    return Entry(Scope.NETWORK, who, masks, bound.run, error, note, first)


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
