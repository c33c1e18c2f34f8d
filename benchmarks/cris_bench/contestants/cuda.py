"""Contestants on a GPU, from device memory to device memory, by the device's own clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Final, cast

from numpy.typing import NDArray

from cris_bench.contestants.contestant import Bound
from cris_bench.place import Place
from cris_bench.scopes.timing import Clocked, clocked
from cris_deploy.bundle.manifest import STAGES, GraphName
from cris_deploy.engine import Engine
from cris_deploy.execution.backends import Graph
from cris_deploy.execution.cuda.device import Lane
from cris_deploy.execution.cuda.graph import BoundGraph, DeviceGraph
from cris_deploy.pixels.image import Pixels

PASSES: Final = 10
"""What a timed pass of a network is the mean of: that many, queued one behind the other. The time
of one alone would hold the device's wait for the host, which queues it."""


def bind(
    graphs: Mapping[GraphName, Graph],
    image: NDArray[Any],
    tokens: NDArray[Any],
    profile: dict[GraphName, float],
) -> Bound:
    """Bind the three stages of an engine on a GPU; see `contestants.Network`.

    A timed run leaves in `profile` how many seconds each stage took, with the copies of its inputs.
    """
    stages = {name: cast(DeviceGraph, graph) for name, graph in graphs.items()}
    device = stages[GraphName.IMAGE_ENCODER].device
    cuda = device.cuda
    timed = cuda.core.EventOptions(timing_enabled=True)

    def queue(
        lane: Lane, *, upload: bool = False, after_stage: Callable[[], object] = lambda: None
    ) -> BoundGraph:
        scene = stages[GraphName.IMAGE_ENCODER].bound(lane, {"image": len(image)})
        text = stages[GraphName.TEXT_ENCODER].bound(lane, {"tokens": len(tokens)})
        if upload:
            lane.upload(
                image.astype(scene.inputs["image"].dtype, copy=False), scene.inputs["image"]
            )
            lane.upload(tokens, text.inputs["tokens"])
        scene.launch()
        after_stage()
        text.launch()
        after_stage()
        given = {
            name: tensor.rows(0, count)
            for slot, count in ((scene, len(image)), (text, len(tokens)))
            for name, tensor in slot.outputs.items()
        }
        rows = {name: tensor.shape[0] for name, tensor in given.items()}
        decoder = stages[GraphName.MASK_DECODER].bound(lane, rows)
        for name, tensor in given.items():
            decoder.fill(name, [tensor])
        decoder.launch()
        after_stage()
        return decoder

    def run() -> Clocked:
        with device.lane() as lane:

            def record() -> Any:
                return cuda.run(lane.stream.core.record, options=timed)

            start = record()
            for _ in range(PASSES):
                queue(lane)
            end = record()
            # Behind them, so that its events cost them nothing and the device need not wait.
            marks = [end]
            queue(lane, after_stage=lambda: marks.append(record()))
            cuda.run(marks[-1].sync)
        times = (_seconds(before, after) for before, after in pairwise(marks))
        profile.update(zip(STAGES, times, strict=True))
        return Clocked(_seconds(start, end) / PASSES)

    def logits() -> NDArray[Any]:
        with device.lane() as lane:
            decoder = queue(lane, upload=True)
            return lane.download(decoder.outputs["logits"].rows(0, len(tokens)))[0].copy()

    return Bound(run, logits)


def device_pass(engine: Engine, rgb: Pixels, place: Place) -> Callable[[str], Clocked]:
    """From an image (H, W, 3) on the GPU to its mask there."""
    import torch

    image = torch.from_numpy(rgb.copy()).to(str(place))
    stream = torch.cuda.Stream(str(place))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(str(place))

    def run(expression: str) -> Clocked:
        return clocked(lambda: engine.segment_on_device(image, expression, stream=stream), stream)

    return run


def _seconds(before: Any, after: Any) -> float:
    """Seconds between two events of `cuda.core`, whose difference is in milliseconds."""
    return float(after - before) / 1e3
