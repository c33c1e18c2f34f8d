"""One run of `cris-bench`, from its options to its record."""

from __future__ import annotations

import contextlib
import datetime
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch

from cris_bench.budget import Budget
from cris_bench.contestants.ours import Way, find_ways
from cris_bench.contestants.starters import choose_place, open_starters
from cris_bench.exports import Exports, default_folder
from cris_bench.options import ALONE, WARMUP, BenchOptions
from cris_bench.place import Place
from cris_bench.record import machine
from cris_bench.record.schema import FORMAT, Accuracy, Ceiling, Memory, Record, StageWork
from cris_bench.scopes.ceilings import measure_ceilings
from cris_bench.scopes.energy import Meter
from cris_bench.scopes.memory import measure_alone
from cris_bench.scopes.races import Results, Tick, race, shapes
from cris_bench.scopes.throughput import measure_throughput
from cris_bench.subject import Step, Subject, prepare
from cris_deploy.bundle.manifest import STAGES, GraphName
from cris_deploy.execution.backends import BackendName, Compute
from cris_deploy.words.tokenizer import TruncationWarning
from cris_train.evaluation.measure import EvalOptions, measure

# Shares of what is left of a run's time, for what is exported and quantised, and for the races.
_MAKING: Final = 0.6
_RACING: Final = 0.95
_MINIMAL_FILTERING: Final = (BackendName.OPENVINO, Compute.FP32)
"""Who does its convolutions with fewer products (decision 10)."""


def run(options: BenchOptions, step: Step, tick: Tick) -> Record:
    """Measure everything that was asked for.

    Args:
        options: What to measure.
        step: Called with a line before each step.
        tick: Called after every pass.

    Raises:
        InputError: an option cannot be used.
        CheckpointError: the checkpoint cannot be used.
        BundleError: the bundle cannot be used.
        BackendError: a device, backend or arithmetic that was asked for cannot be had.
        DataError: the data set cannot be used.
    """
    budget = Budget(60 * options.minutes or None)
    place = choose_place(options)
    options.check_for(place)
    exports = Exports(default_folder())
    with (
        tempfile.TemporaryDirectory(prefix="cris-bench-") as name,
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        _threads(options.threads),
        warnings.catch_warnings(),
    ):
        # Made-up expressions may be longer than a small model's, which costs no time.
        warnings.simplefilter("ignore", TruncationWarning)
        folder = Path(name)
        making = budget.part(_MAKING)
        subject, late = prepare(options, place, exports, folder, step, making)
        ways, absent = find_ways(
            subject.bundles,
            place,
            options.backends,
            subject.computes,
            strict=bool(options.computes),
        )
        alone = set(options.scopes) & set(ALONE)
        results = Results()
        memory: list[Memory] = []
        ceilings: tuple[Ceiling, ...] = ()
        if not options.quick:
            step("the ceilings of this machine")
            ceilings = measure_ceilings(ways, options.threads)
        with open_starters(
            options, place, exports, folder, subject, ways, step, making
        ) as starters:
            ways = list(starters.ways)
            races = shapes(options)
            for number, shape in enumerate(races):
                # Clients and processes of their own take as long as a race each.
                more = bool(options.clients) + bool(alone)
                share = budget.part(_RACING / (len(races) - number + more))
                step(
                    f"images {shape.batch}, expressions {shape.expressions}: "
                    f"at most {options.most_rounds} rounds, each in an order of its own"
                )
                race(starters.field(), shape, options, results, tick, share)
            meter = _meter(place)
            loaded = budget.part(_RACING / (1 + bool(alone)))
            clients = tuple(measure_throughput(starters, step, tick, loaded, meter))
        if alone:
            step("each contestant in processes of its own")
            rows, memory = measure_alone(
                starters.alone(), options.scopes, tick, budget.part(_RACING)
            )
            results.rows += rows
        accuracy = tuple(_accuracy(subject, ways, options, step))
    return Record(
        format=FORMAT,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=options.command,
        commit=machine.commit(),
        machine=machine.describe(_uuid(place)),
        model=subject.facts,
        warmup=max(WARMUP, options.warmup),
        iterations=options.most_rounds,
        seed=options.seed,
        minutes=options.minutes,
        energy=meter.absent if clients else "",
        threads=options.threads,
        image_height=options.image_height,
        image_width=options.image_width,
        rows=tuple(results.rows),
        clients=clients,
        memory=tuple(memory),
        ceilings=ceilings,
        work=tuple(_work(subject, ways, results)),
        bundles=subject.bundle_facts,
        absent=(*late, *starters.absent, *absent),
        accuracy=accuracy,
        paper_fps=subject.paper_fps,
    )


def _meter(place: Place) -> Meter:
    """Of the processors, which are not what a GPU's masks take."""
    return Meter({}, "a GPU's is not measured") if place.on_gpu else Meter.open()


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """PyTorch's threads, which belong to the whole process."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _uuid(place: Place) -> str | None:
    """The GPU as nvidia-smi knows it, which counts them in an order of its own."""
    return f"GPU-{torch.cuda.get_device_properties(place.index).uuid}" if place.on_gpu else None


def _work(subject: Subject, ways: Sequence[Way], results: Results) -> Iterator[StageWork]:
    bundles = {way.name: way.bundle for way in ways}
    fewer = {way.name for way in ways if (way.backend, way.compute) == _MINIMAL_FILTERING}
    medians = [
        (name, shape, stage, seconds)
        for (name, shape), stages in results.stages.items()
        for stage, seconds in stages.items()
    ]
    for name, shape, stage, seconds in medians:
        operations, weights = subject.work[bundles[name]][stage]
        if stage in STAGES and operations:
            rows = shape.batch if stage is GraphName.IMAGE_ENCODER else shape.masks
            yield StageWork(
                stage=stage.value,
                operations=rows * operations,
                weight_bytes=weights,
                seconds=seconds,
                name=name,
                batch=shape.batch,
                expressions=shape.expressions,
                fewer=name in fewer,
            )


def _accuracy(
    subject: Subject, ways: Sequence[Way], options: BenchOptions, step: Step
) -> Iterator[Accuracy]:
    """What `cris-eval` says of the very bundles that were timed."""
    if options.evaluate is None:
        return
    for way in ways:
        step(f"evaluating {way.name} on {options.evaluate}")
        report = measure(
            EvalOptions(
                data=options.evaluate,
                bundle=way.path,
                backend=way.backend.value,
                device=str(way.place),
                precision=way.compute.value,
                limit=options.eval_limit,
            )
        )
        for score in report.splits:
            yield Accuracy(
                name=way.name,
                mean_iou=score.mean_iou,
                overall_iou=score.overall_iou,
                precision=score.precision,
                expressions=score.expressions,
                data=report.data,
                split=score.split,
            )
