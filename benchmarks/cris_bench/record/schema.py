"""A run of `cris-bench` as plain data: between those who measure and those who show."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from cris_bench.record.machine import Machine
from cris_bench.scopes.timing import spread
from cris_deploy.documents import Count, Positive
from cris_deploy.errors import InputError

FORMAT: Final = 2
"""Version of the records that are written, and the newest that is read."""
NOISY: Final = 0.15
"""Spread from which on a time says more of its machine than of its contestant."""

AboveZero: TypeAlias = Annotated[float, Meta(gt=0)]
Times: TypeAlias = Annotated[
    tuple[AboveZero, ...], Meta(min_length=1, description="a time of every pass")
]
Differences: TypeAlias = Annotated[
    tuple[float, ...], Meta(min_length=1, description="a time of every pass")
]


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


class Role(StrEnum):
    """Who takes part: PyTorch eager, another way that a user has, or this engine."""

    BASELINE = "baseline"
    PEER = "peer"
    ENGINE = "engine"


class Parity(StrEnum):
    """What a bundle's manifest says of its parity gate; NONE if it has no record of one."""

    PROVED = "proved"
    FAILED = "failed"
    NONE = "none"


class NotFinite(StrEnum):
    """What stands for a number that JSON does not have."""

    NAN = "NaN"
    INFINITY = "Infinity"


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
    seconds: Differences
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
    """

    name: str
    device: str
    compute: str
    threads: Positive
    seconds: AboveZero
    images: Positive
    latencies: Times

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


@dataclass(frozen=True, slots=True)
class Memory:
    """What a contestant takes, in a process of its own.

    Attributes:
        name: Contestant.
        host_peak_bytes: Largest resident set while it loads and makes masks, libraries included.
        host_weights_bytes: Its weights as they are stored.
        device_peak_bytes: Most that it took of a GPU's memory; None on a CPU.
    """

    name: str
    host_peak_bytes: Positive
    host_weights_bytes: Positive
    device_peak_bytes: Count | None = None


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What a device was measured to be capable of in one arithmetic.

    Attributes:
        device: Which.
        compute: Arithmetic.
        matrix_ops_per_s: Operations (2 x multiply-adds) per second of a large matrix product.
        copy_bytes_per_s: Bytes read plus bytes written per second by a large copy.
    """

    device: str
    compute: str
    matrix_ops_per_s: AboveZero
    copy_bytes_per_s: AboveZero


@dataclass(frozen=True, slots=True)
class StageWork:
    """What a stage has to do in a pass of the network, and how long it took.

    Attributes:
        stage: image_encoder, text_encoder or mask_decoder.
        operations: 2 x multiply-adds: those of one image or one mask, times their number.
        weight_bytes: Weights that a run reads.
        seconds: Median of its runs.
        name: Contestant that ran it; one of the names of scope NETWORK.
        batch: Images of the pass.
        expressions: Expressions for each of them.
    """

    stage: str
    operations: Positive
    weight_bytes: Count
    seconds: AboveZero
    name: str
    batch: Positive = 1
    expressions: Positive = 1


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """A bundle that was timed.

    Attributes:
        precision: Type it stores.
        sha256: Of its manifest, which holds its files' hashes.
        bytes: Size on disk.
        parity: What its manifest says of its parity gate.
        mean_iou: Mean mask IoU with FP32 PyTorch in that gate; None without a record of it.
    """

    precision: str
    sha256: str
    bytes: int
    parity: Parity
    mean_iou: float | None = None


@dataclass(frozen=True, slots=True)
class Absent:
    """A contestant that this installation lacks, and the command that installs it, or the fault."""

    name: str
    install: str


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How well a contestant segments, 0 to 1, measured with the very file that was timed.

    Attributes:
        name: Contestant.
        mean_iou: mIoU, the paper's "IoU".
        overall_iou: oIoU: total intersection over total union.
        precision: {"Pr@50": share of expressions with an IoU above 0.5, ...}.
        expressions: Number of them measured.
        data: Name of the data set's folder.
        split: Of the data set.
    """

    name: str
    mean_iou: float
    overall_iou: float
    precision: Mapping[str, float]
    expressions: int
    data: str
    split: str


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model that all contestants run.

    Attributes:
        architecture: Of the image encoder.
        input_size: Side of the letterboxed image, pixels.
        word_len: Tokens of an expression.
        parameters: Number of them.
        weights: "random", or the checkpoint's SHA-256.
    """

    architecture: str
    input_size: int
    word_len: int
    parameters: int
    weights: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run of `cris-bench`.

    Attributes:
        format: Version of this layout.
        created: UTC, ISO 8601.
        command: Arguments as they were given.
        commit: Of the source tree, with "+" behind it if that has changes; None outside of one.
        machine: What it ran on.
        model: What it ran.
        warmup: Untimed rounds of a group.
        iterations: Timed rounds of a group.
        threads: CPU threads that were asked for; None for all cores.
        image_height: Of the image in the scopes that start from one, pixels.
        image_width: Likewise.
        rows: Times; within a scope, batch and number of expressions the baseline is first.
        clients: Throughput.
        memory: Peaks.
        ceilings: What the machine is capable of.
        work: Stages.
        bundles: Name -> bundle that was timed.
        absent: Who could not take part.
        accuracy: Results of an evaluation.
        paper_fps: The paper's figure for this model, on a V100 GPU; None if it has none.
    """

    format: int
    created: str
    command: tuple[str, ...]
    commit: str | None
    machine: Machine
    model: ModelFacts
    warmup: int
    iterations: int
    threads: int | None
    image_height: int
    image_width: int
    rows: tuple[Row, ...]
    clients: tuple[Clients, ...] = ()
    memory: tuple[Memory, ...] = ()
    ceilings: tuple[Ceiling, ...] = ()
    work: tuple[StageWork, ...] = ()
    bundles: Mapping[str, BundleFacts] = dataclasses.field(default_factory=dict)
    absent: tuple[Absent, ...] = ()
    accuracy: tuple[Accuracy, ...] = ()
    paper_fps: float | None = None

    def __post_init__(self) -> None:
        for row in self.rows:
            if row.bundle not in (None, *self.bundles):
                raise InputError(f"row {row.name!r} names bundle {row.bundle!r}, which is missing")
