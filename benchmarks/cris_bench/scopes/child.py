"""A contestant alone in a process: how long until its first mask, and how much memory it takes.

Run by `memory.py` with a `Task` as JSON; prints a `Measured` as JSON. It imports what its
contestant needs and no more, since imports are a part of both.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from cris_bench.place import Place
from cris_deploy import documents

if TYPE_CHECKING:
    from cris_bench.contestants.contestant import Network

# Calls after the first: what a runtime allocates, it has allocated by then.
_MORE = 4

Call = Callable[[], object]


class Kind(StrEnum):
    """Who runs."""

    ENGINE = "engine"
    EAGER = "eager"
    COMPILED = "compiled"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


@dataclass(frozen=True)
class Task:
    """What a child is to load and run.

    Attributes:
        kind: Who.
        path: Bundle, checkpoint or plain export.
        place: Where.
        threads: CPU threads; None for all.
        backend: Of an engine; "" for others.
        compute: Arithmetic.
        height: Of the picture that an engine is given, pixels.
        width: Likewise.
        input_size: Of the model.
        word_len: Of the model.
        vocabulary: Of the model.
        started: System-wide monotonic clock, just before the process was made.
    """

    kind: Kind
    path: str
    place: Place
    threads: int | None
    backend: str
    compute: str
    height: int
    width: int
    input_size: int
    word_len: int
    vocabulary: int
    started: float = 0.0


@dataclass(frozen=True)
class Measured:
    """What a child measured.

    Attributes:
        load: Seconds from the start of the process until it can be called, imports included.
        first_call: Seconds of the first call: an engine from a decoded image to a mask, all others
            their network alone.
        peak_bytes: Largest resident set.
        device_peak_bytes: Taken of a GPU's memory; None on a CPU.
    """

    load: float
    first_call: float
    peak_bytes: int
    device_peak_bytes: int | None


def measure(task: Task) -> Measured:
    """Load, call a few times, and look at the memory."""
    free = _free_on_gpu(task.place.index) if task.place.on_gpu else None
    prepare = _engine(task) if task.kind is Kind.ENGINE else _network(task)
    load = time.monotonic() - task.started
    call = prepare()
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    for _ in range(_MORE):
        call()
    # What runtimes take of a GPU they keep, so that the end is the peak.
    taken = None if free is None else max(0, free - _free_on_gpu(task.place.index))
    return Measured(load, first, peak_bytes(), taken)


def peak_bytes() -> int:
    """Largest resident set of this process; getrusage would count its parent's, too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def _engine(task: Task) -> Callable[[], Call]:
    from cris_deploy.engine import Engine

    engine = Engine(
        task.path,
        backend=task.backend,
        device=str(task.place),
        precision=task.compute,
        threads=task.threads,
        verify=False,
    )

    def prepare() -> Call:
        from cris_bench.scopes.inputs import Fresh

        fresh = Fresh(task.height, task.width)
        return lambda: engine.segment(fresh.picture(), fresh.expression())

    return prepare


def _network(task: Task) -> Callable[[], Call]:
    network: Network
    if task.kind in (Kind.EAGER, Kind.COMPILED):
        network = _pytorch(task)
    else:
        from cris_bench.contestants.plain import PlainExport
        from cris_deploy.execution.backends import BackendName, Compute

        backend, compute = BackendName(task.kind.value), Compute(task.compute)
        network = PlainExport(Path(task.path), backend, compute, task.threads)

    def prepare() -> Call:
        from cris_bench.scopes.inputs import random_image, random_tokens

        image = random_image(1, task.input_size)
        tokens = random_tokens(1, task.word_len, task.vocabulary)
        return network.bind(image, tokens).logits  # `run` queues many passes on a GPU

    return prepare


def _pytorch(task: Task) -> Network:
    import torch

    from cris_bench.contestants.pytorch import COMPILED, Eager, peers
    from cris_train import checkpoint as checkpoints

    if task.threads is not None:
        torch.set_num_threads(task.threads)
    model = checkpoints.build(checkpoints.load(task.path)).to(str(task.place))
    if task.kind is Kind.EAGER:
        return Eager(model, None, task.place)
    return peers(model, [COMPILED], task.place)[0]


def _free_on_gpu(index: int) -> int:
    from cris_deploy.execution.cuda.api import load_cuda

    return load_cuda().free_bytes(index)


def main() -> None:
    """Do the task in the first argument."""
    measured = measure(documents.read(Task, sys.argv[1], "the task"))
    print(json.dumps(documents.plain(measured)))  # one line, behind whatever libraries print


if __name__ == "__main__":
    main()
