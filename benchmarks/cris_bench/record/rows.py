"""The times in a record, and what follows from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from cris_deploy.documents import Positive
from cris_deploy.errors import InputError

NOISY: Final = 0.15
"""Spread from which on a time says more of its machine than of its contestant."""

AboveZero: TypeAlias = Annotated[float, Meta(gt=0)]
_OF_EVERY_PASS: Final = Meta(min_length=1, description="a time of every pass")


class Scope(StrEnum):
    """What a time is the time of."""

    NETWORK = "network"
    DEVICE = "device"
    END_TO_END = "end_to_end"
    FROM_BYTES = "from_bytes"
    EXPRESSION = "further_expression"
    REPEATED_EXPRESSION = "repeated_expression"
    REPEATED_IMAGE = "repeated_image"
    OVERHEAD = "engine_overhead"
    LOAD = "load"
    FIRST_CALL = "first_call"


AGAINST: Final = {
    Scope.NETWORK: Scope.NETWORK,
    Scope.END_TO_END: Scope.END_TO_END,
    Scope.FROM_BYTES: Scope.FROM_BYTES,
    Scope.EXPRESSION: Scope.END_TO_END,
    Scope.REPEATED_EXPRESSION: Scope.END_TO_END,
    Scope.REPEATED_IMAGE: Scope.END_TO_END,
    Scope.LOAD: Scope.LOAD,
    Scope.FIRST_CALL: Scope.FIRST_CALL,
}
"""What the baseline has to do for the same mask: it keeps nothing of an image or an expression."""


class Role(StrEnum):
    """Who takes part: PyTorch eager, another way that a user has, or this engine."""

    BASELINE = "baseline"
    PEER = "peer"
    ENGINE = "engine"


class NotFinite(StrEnum):
    """What stands for a number that JSON does not have."""

    NAN = "NaN"
    INFINITY = "Infinity"


def arithmetic(compute: str) -> str:
    """What an arithmetic's products are in: int8 for the mixed int8-bf16."""
    return compute.partition("-")[0]


def finite(number: float) -> float | NotFinite:
    """A number as a record has it."""
    if math.isfinite(number):
        return number
    return NotFinite.NAN if math.isnan(number) else NotFinite.INFINITY


@dataclass(frozen=True, slots=True)
class Row:
    """One contestant in one scope.

    Attributes:
        scope: What was timed.
        name: Contestant, such as "openvino int8-bf16"; the same in every scope.
        role: Of the contestant.
        device: Where it ran.
        compute: Arithmetic it ran in.
        batch: Images of a pass.
        expressions: Expressions for each of them.
        masks: Masks that a pass makes.
        seconds: Raw times, one per timed pass; of scope OVERHEAD differences, so of any sign.
        ratio: How many times faster than PyTorch eager's a mask is made, median over interleaved
            rounds; None where PyTorch eager has no such pass.
        logit_error: Largest difference from PyTorch eager's logits, a word if it is not finite;
            None where no logits are compared.
        bundle: Key into the record's bundles; None for a contestant without a bundle.
        note: What else a reader has to know; "" for nothing.
    """

    scope: Scope
    name: str
    role: Role
    device: str
    compute: str
    batch: Positive
    expressions: Positive
    masks: Positive
    seconds: Annotated[tuple[float, ...], _OF_EVERY_PASS]
    ratio: AboveZero | None = None
    logit_error: float | NotFinite | None = None
    bundle: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.scope is not Scope.OVERHEAD and min(self.seconds) <= 0:
            raise InputError(f"seconds has {min(self.seconds)}, expected times above 0")

    @property
    def mask_ms(self) -> float:
        """Median time of a mask, milliseconds."""
        return statistics.median(self.seconds) * 1e3 / self.masks

    @property
    def fps(self) -> float:
        """Masks per second at the median; infinite where the median is zero or less."""
        return 1e3 / self.mask_ms if self.mask_ms > 0 else math.inf

    @property
    def spread(self) -> float:
        """Interquartile range over median; NaN of fewer than four passes or a difference."""
        return math.nan if self.scope is Scope.OVERHEAD else spread(self.seconds)

    @property
    def noisy(self) -> bool:
        """Whether the machine was too restless for this time."""
        return self.spread > NOISY


@dataclass(frozen=True, slots=True)
class Clients:
    """One engine under threads that each ask for the next mask as soon as they have the last.

    Attributes:
        name: Contestant.
        device: Where it ran.
        compute: Arithmetic it ran in.
        threads: Clients.
        seconds: From the first call's start to the last one's end.
        images: Calls answered in that time.
        latencies: Seconds of each call.
        cpu_threads: Of each call, as asked for; None for all cores.
        streams: Calls that the engine takes at once.
        joules: That the processors took in that time; None where the machine does not tell.
    """

    name: str
    device: str
    compute: str
    threads: Positive
    seconds: AboveZero
    images: Positive
    latencies: Annotated[tuple[AboveZero, ...], _OF_EVERY_PASS]
    cpu_threads: Positive | None = None
    streams: Positive = 1
    joules: AboveZero | None = None

    @property
    def title(self) -> str:
        """Who served, and with how many threads and streams if not with all and one."""
        parts = [self.name]
        if self.cpu_threads is not None:
            parts.append(f"{self.cpu_threads} threads")
        if self.streams > 1:
            parts.append(f"{self.streams} streams")
        return ", ".join(parts)

    @property
    def masks_per_wh(self) -> float | None:
        """Masks that a watt-hour gives; None where energy is not told."""
        return None if self.joules is None else self.images * 3600 / self.joules

    @property
    def throughput(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def p50_ms(self) -> float:
        """Latency that half of the calls stay within, milliseconds."""
        return self._percentile(50)

    @property
    def p95_ms(self) -> float:
        """Latency that 95% of the calls stay within, milliseconds."""
        return self._percentile(95)

    @property
    def p99_ms(self) -> float:
        """Latency that 99% of the calls stay within, milliseconds."""
        return self._percentile(99)

    def _percentile(self, percent: int) -> float:
        """The smallest latency that so many percent of the calls do not exceed (nearest rank)."""
        rank = math.ceil(len(self.latencies) * percent / 100)
        return sorted(self.latencies)[rank - 1] * 1e3


def spread(seconds: Sequence[float]) -> float:
    """Interquartile range over median; NaN of fewer than four."""
    if len(seconds) < 4:
        return float("nan")
    low, middle, high = statistics.quantiles(seconds, n=4)
    return (high - low) / middle
