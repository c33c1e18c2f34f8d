"""Times on the device's own clock: CUDA events around queued work, contestants in turn."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cris_deploy import Engine
from cris_deploy.bundle.reading import GraphName
from cris_deploy.errors import CrisError
from cris_deploy.execution.cuda.api import load_cuda

WARMUP = 5  # covers TensorRT's first run and capture, ONNX Runtime's too


@dataclass(frozen=True)
class Contest:
    """Milliseconds per run by contestant, one entry per round; or why one could not run."""

    milliseconds: dict[str, list[float]]
    failures: dict[str, str]

    def report(self) -> dict[str, Any]:
        return {
            "milliseconds": self.milliseconds,
            "median_ms": {n: statistics.median(v) for n, v in self.milliseconds.items()},
            "failures": self.failures,
        }


@dataclass(frozen=True)
class Contestant:
    """A call that queues one run on a stream, which `hold` keeps for it."""

    hold: Callable[[], contextlib.AbstractContextManager[tuple[int, Callable[[], None]]]]


def race(contestants: Mapping[str, Contestant], rounds: int, runs: int) -> Contest:
    """Time `runs` queued one after the other, per contestant and round, in turn."""
    cuda = load_cuda()
    timed = cuda.core.EventOptions(timing_enabled=True)
    times: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    for round_ in range(-1, rounds):
        for name, contestant in contestants.items():
            if name in failures:
                continue
            try:
                with contestant.hold() as (handle, run):
                    stream = cuda.stream(handle)
                    for _ in range(WARMUP if round_ < 0 else 1):
                        run()
                    start = cuda.run(stream.record, options=timed)
                    for _ in range(runs):
                        run()
                    end = cuda.run(stream.record, options=timed)
                    cuda.run(end.sync)
            except (CrisError, RuntimeError) as error:  # torch's errors are RuntimeErrors
                failures[name] = " ".join(str(error).split())[:500]
                times.pop(name, None)
                continue
            if round_ >= 0:
                times.setdefault(name, []).append((end - start) / runs)
    return Contest(times, failures)


def stages(engine: Engine, rows: Mapping[GraphName, Mapping[str, int]]) -> Contestant:
    """Run stages of an engine with inputs of so many rows, from device memory to device memory."""

    @contextlib.contextmanager
    def hold() -> Iterator[tuple[int, Callable[[], None]]]:
        graphs = engine.pipeline.stages
        device = next(iter(graphs.values())).device  # type: ignore[attr-defined]
        with device.lane() as lane:
            graphs_of_lane = [graphs[name].bound(lane, counts) for name, counts in rows.items()]  # type: ignore[attr-defined]

            def run() -> None:
                for bound in graphs_of_lane:
                    bound.launch()

            yield lane.stream.handle, run
            lane.stream.wait()

    return Contestant(hold)


def torch_module(module: Any, *arguments: Any) -> Contestant:
    """Run a PyTorch module on a stream of its own."""
    import torch

    stream = torch.cuda.Stream()

    @contextlib.contextmanager
    def hold() -> Iterator[tuple[int, Callable[[], None]]]:
        with torch.inference_mode(), torch.cuda.stream(stream):
            yield stream.cuda_stream, lambda: module(*arguments)
            stream.synchronize()

    return Contestant(hold)


def whole(batch: int) -> dict[GraphName, dict[str, int]]:
    """Rows of all stages for a batch of pairs of image and expression."""
    text = dict.fromkeys(("words", "sentence", "padding"), batch)
    return {
        GraphName.IMAGE_ENCODER: {"image": batch},
        GraphName.TEXT_ENCODER: {"tokens": batch},
        GraphName.MASK_DECODER: {**text, **dict.fromkeys(("f3", "f4", "f5"), batch)},
    }


def expressions(count: int) -> dict[GraphName, dict[str, int]]:
    """Rows of the stages that further expressions on one known image take."""
    text = dict.fromkeys(("words", "sentence", "padding"), count)
    return {
        GraphName.TEXT_ENCODER: {"tokens": count},
        GraphName.MASK_DECODER: {**text, **dict.fromkeys(("f3", "f4", "f5"), 1)},
    }


def end_to_end(engine: Engine, calls: int) -> list[float]:
    """Milliseconds of `segment` on the host's clock: pixels in, mask out, a new image each time."""
    import time

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(calls + WARMUP)]
    times = []
    for image in images:
        begin = time.perf_counter()
        engine.segment(image, "the man in red")
        times.append((time.perf_counter() - begin) * 1e3)
    return times[WARMUP:]
