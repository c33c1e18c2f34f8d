"""A run of `cris-bench` as plain data: between those who measure and those who show."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cris_bench.record.machine import Machine
from cris_bench.record.rows import AboveZero, Clients, Row
from cris_deploy.documents import Count, Positive
from cris_deploy.errors import InputError

FORMAT: Final = 3
"""Version of the records that are written, and the newest that is read."""


class Parity(StrEnum):
    """What a bundle's manifest says of its parity gate; NONE if it has no record of one."""

    PROVED = "proved"
    FAILED = "failed"
    NONE = "none"


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
        fewer: Whether it is done with fewer products than these operations count.
    """

    stage: str
    operations: Positive
    weight_bytes: Count
    seconds: AboveZero
    name: str
    batch: Positive = 1
    expressions: Positive = 1
    fewer: bool = False


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
        warmup: Untimed rounds of a race.
        iterations: Timed rounds of a race, at most; each row has its own number of times.
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
        seed: Of the order of contestants in each round; None where it was always the same.
        minutes: That the run was given; 0 for no end.
        energy: Why no energy was measured; "" where it was, or nobody asked.
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
    seed: Count | None = None
    minutes: float = 0.0
    energy: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if row.bundle not in (None, *self.bundles):
                raise InputError(f"row {row.name!r} names bundle {row.bundle!r}, which is missing")
