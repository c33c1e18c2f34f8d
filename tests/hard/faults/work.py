"""What is done in children of the zygote: small, whole pieces of work, each to one folder."""

import json
import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cris_deploy import Batcher, Engine
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import CrisError
from cris_deploy.serving.images import ImageStore
from cris_export import export as exports
from cris_export.graph import trace
from cris_export.options import ExportOptions
from cris_export.proof.verify import Asked
from cris_train import checkpoint
from cris_train.model import Cris, CrisConfig
from cris_train.run.loop import train
from cris_train.run.recipe import TrainConfig
from tests.hard.faults import answers, injection
from tests.helpers.models import randomised
from tests.helpers.tracing import TracedOnce
from tests.helpers.training import tiny_recipe

torch.set_num_threads(1)  # a forked child has no threads of its parent's pool
_TRACED = TracedOnce()
trace.trace_stages = _TRACED


def model() -> Cris:
    """The model of all exports here."""
    torch.manual_seed(0)
    return randomised(Cris(CrisConfig.tiny(decoder_layers=2)))


def _trace_now() -> None:
    """Here, before there is a child: then no child has to."""
    from cris_export.graph.stages import build_stages

    small = model()
    _TRACED(build_stages(small), small.config, ExportOptions(Path("unused")).opset)


def write_checkpoint(path: str) -> dict[str, Any]:
    """Write the model's checkpoint."""
    checkpoint.save(path, model())
    return {}


def export(ckpt: str, output: str) -> dict[str, Any]:
    """Export a checkpoint, and prove it on one backend."""
    done = exports.export(
        ExportOptions(Path(ckpt), output=Path(output), asked=Asked("onnxruntime", "cpu"))
    )
    return {"bundle": str(done.bundle), "sizes": done.sizes}


def ask(bundle: str) -> dict[str, Any]:
    """Open a bundle, hash all of it, and give the digest of its masks."""
    with Engine(Bundle.open(bundle), backend="onnxruntime", threads=1) as engine:
        return {"masks": answers.digest(engine)}


def recipe(data: str, output: str, epochs: int = 4, *, events: bool = False) -> TrainConfig:
    """A run of 3 steps an epoch, with all that a run keeps: best, average, dropout's numbers."""
    return tiny_recipe(
        Path(data),
        Path(output),
        model=CrisConfig.tiny(dropout=0.1),
        images_per_batch=2,
        expressions_per_image=2,
        epochs=epochs,
        val_images=2,
        validate_every=20,  # five steps
        save_every=2,
        ema=0.9,
        tensorboard=events,
    )


def run(data: str, output: str, epochs: int = 4, events: bool = False) -> dict[str, Any]:
    """Train, or go on."""
    done = train(recipe(data, output, epochs, events=events), lambda _: None, resume=True)
    return {"mean_iou": done.mean_iou}


def write_bench_record(path: str) -> dict[str, Any]:
    """Write a record of cris-bench."""
    from cris_bench.record.file import read_record, write_record
    from tests.stand_ins.fake_record import record

    write_record(path, record())
    read_record(path)
    return {}


def answer_after(bundle: str, megabytes: int) -> dict[str, Any]:
    """Open an engine, then ask it with `megabytes` of address space left; then with all."""
    with Engine(bundle, backend="onnxruntime", threads=1, cache=False) as engine:
        golden = answers.digest(engine)
        told: dict[str, Any] = {"golden": golden}
        with injection.little_memory(megabytes << 20):
            try:
                told["masks"] = answers.digest(engine)
            except CrisError as error:
                told |= {"error": type(error).__name__, "message": str(error)}
        told["again"] = answers.digest(engine)
    return told


def jump_while_waiting(bundle: str, seconds: int) -> dict[str, Any]:
    """Let the wall clock jump while a batcher has requests with deadlines, and an image is kept."""
    kept, found = ImageStore(1, 60.0), []
    with Engine(bundle, backend="onnxruntime", threads=1) as engine, Batcher(engine) as batcher:
        picture = engine.pipeline.prepare(answers.picture())
        kept.put("it", picture)
        for jump in (0, seconds, -seconds):
            injection.jump(jump)
            future = batcher.submit(picture, list(answers.WORDS), timeout=60.0)
            found.append(answers.digest_of(future.result()))
    return {"masks": found, "kept": kept.get("it") is picture}


WORKS = {
    work.__name__: work
    for work in (
        *(write_checkpoint, export, ask, run, write_bench_record, answer_after),
        jump_while_waiting,
    )
}
_trace_now()


def do(name: str, arguments: Mapping[str, Any], fault: Mapping[str, Any], to: str) -> None:
    """Do a work in this process and end it; what it gave or raised is written to `to`.

    `fault` is what `injection.injected` takes.
    """
    status = 0
    # The pool of threads that the parent had is not here: one thread makes a new one, not two.
    torch.set_num_threads(1)
    calls = 0
    try:
        with injection.injected(**fault) as seen:
            try:
                told = WORKS[name](**arguments)
            finally:
                calls = seen()
    except CrisError as error:
        told, status = {"error": type(error).__name__, "message": str(error), "ours": True}, 2
    except BaseException as error:
        told, status = {"error": type(error).__name__, "message": traceback.format_exc()}, 1
    Path(to).write_text(json.dumps({**told, "calls": calls}))
    os._exit(status)
