"""A job on Ray Data: portions go through workers, each of which has an engine."""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import ray
from ray.data import ActorPoolStrategy, DataContext

from cris_deploy import arguments
from cris_deploy.batch.parts import TRIES, Done, Facts, Output, segment
from cris_deploy.batch.placement import share
from cris_deploy.batch.reading import Asked, Reader
from cris_deploy.batch.sources import Input, Portion
from cris_deploy.bundle.reading import Bundle
from cris_deploy.engine import Engine
from cris_deploy.errors import BackendError, CrisError, InputError, one_line
from cris_deploy.execution.backends import AUTO
from cris_deploy.pixels.image import MAX_PIXELS

_MOST_BLOCKS: Final = 2000
_LOST: Final = (
    f"{TRIES} workers were lost over the pictures of this portion, of which it may be the cause: "
    "try it alone"
)


@dataclass(frozen=True, slots=True)
class JobOptions:
    """A job.

    Attributes:
        bundle: Folder that cris-export wrote; every worker has to see it there.
        image: Folder, Parquet file, or URL of either.
        output: Folder or URL for the parts.
        expressions: For all pictures; empty if the rows have their own.
        workers: Engines, each a process.
        threads: Of each; None for an equal share of the CPUs.
        gpus: Of each, for Ray's placement; 0.5 lets two share one. None for one if Ray has any.
        threshold: As of `Engine.segment`.
        max_pixels: As of `Engine`, and so are the next two.
        backend: Of it.
        precision: Of it.
        engine: Further options of `Engine`.
    """

    bundle: str
    image: str
    output: str
    expressions: tuple[str, ...] = ()
    workers: int = 1
    threads: int | None = None
    gpus: float | None = None
    threshold: float | None = None
    max_pixels: int = MAX_PIXELS
    backend: str = AUTO
    precision: str = AUTO
    engine: Mapping[str, Any] = field(default_factory=dict)


def run_job(options: JobOptions, told: Callable[[int, int], None] = lambda *_: None) -> Done:
    """Do what is not done yet. The same call resumes a job that was cut off.

    Args:
        options: What to do.
        told: Called with the number of sources that are done and of all, first and as they come.

    Raises:
        CrisError: what concerns the whole job. What is done by then stays, and is not done again.
    """
    arguments.whole("workers", options.workers, 1, arguments.MOST_THREADS)
    arguments.whole_or_none("threads", options.threads, 1, arguments.MOST_THREADS, "a share")
    if options.gpus is not None and not 0 <= options.gpus < float("inf"):
        raise InputError(f"gpus is {options.gpus}: give a number, 0 or more")
    arguments.fraction_or_none("threshold", options.threshold, "the model's own")
    meant = {name: options.engine.get(name) for name in ("manifest_sha256", "require_signature")}
    bundle = Bundle.open(options.bundle, verify=False, **meant)
    given = Input(options.image, options.expressions)
    output = Output(options.output)
    output.claim(
        Facts(
            bundle.manifest_sha256,
            options.image,
            options.expressions,
            options.threshold,
            options.max_pixels,
            options.backend,
            options.precision,
        )
    )
    done = output.done().sources
    portions = list(given.portions(done))
    finished = len(done)
    total = finished + sum(len(portion.sources) for portion in portions)
    told(finished, total)
    if portions:
        _connect()
        reader = Reader(given.folder, given.expressions)
        for count in _through_workers(options, reader, portions):
            finished += count
            told(finished, total)
    return output.done()


def _through_workers(options: JobOptions, reader: Reader, portions: list[Portion]) -> Iterator[int]:
    each = share(
        options.workers,
        options.threads,
        options.gpus,
        ray.cluster_resources(),
        on_cpu=options.engine.get("device") == "cpu",
        may_grow=_joins(),
    )
    rows = ray.data.from_items(
        [{"portion": pickle.dumps(portion)} for portion in portions],
        override_num_blocks=min(len(portions), _MOST_BLOCKS),
    )
    counted = rows.map_batches(
        _Worker,
        fn_constructor_args=(options, reader, each.threads),
        batch_size=1,
        compute=ActorPoolStrategy(size=options.workers),
        num_cpus=each.threads,
        num_gpus=each.gpus,
    )
    try:
        for row in counted.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield row["done"]
    except CrisError:
        raise
    except Exception as error:  # Ray Data raises many kinds, also its own bugs
        raise BackendError(
            f"Ray gave the job up ({one_line(error)[:300]}): what is done stays, run it again"
        ) from error


class _Worker:
    """What Ray starts `workers` times: an engine, and portions for it."""

    def __init__(self, options: JobOptions, reader: Reader, threads: int) -> None:
        self._options = options
        self._reader = reader
        self._output = Output(options.output)
        self._engine: Engine | CrisError
        try:
            self._engine = Engine(
                options.bundle,
                threads=threads,
                max_pixels=options.max_pixels,
                backend=options.backend,
                precision=options.precision,
                **options.engine,
            )
        except CrisError as error:
            self._engine = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Do one portion. Gives the number of its sources, and what ends the job, if anything.

        An error that were raised would come with Ray's own pages of traces.
        """
        portion: Portion = pickle.loads(batch["portion"][0])  # of this job's own driver
        try:
            self._do(portion)
        except CrisError as error:
            return {"done": [0], "error": [pickle.dumps(error)]}
        return {"done": [len(portion.sources)], "error": [b""]}

    def _do(self, portion: Portion) -> None:
        if isinstance(self._engine, CrisError):
            raise self._engine
        if self._output.has(portion.name):  # of a worker that was lost before it could say so
            return
        if self._output.begin(portion.name):
            asked = self._reader.read(portion)
        else:
            asked = [Asked(source, None, problem=_LOST) for source in portion.sources]
        rows = list(segment(self._engine, asked, self._options.threshold))
        self._output.write(portion.name, rows)


def _joins() -> bool:
    """Whether there is a cluster to join, in the variable that Ray itself has for it."""
    return os.environ.get("RAY_ADDRESS", "local") != "local"


def _connect() -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine."""
    if not ray.is_initialized():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what goes wrong is raised
        local: dict[str, Any] = {"address": "local", "include_dashboard": False}
        ray.init(
            **({} if _joins() else local),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False  # the caller's shows pictures
    context.print_on_execution_start = False
