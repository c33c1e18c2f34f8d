"""An engine's stages on a GPU, from device memory to device memory, by the device's own clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from numpy.typing import NDArray

from cris_bench.contestants.contestant import Bound
from cris_bench.scopes.timing import Clocked
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.engine import Engine
from cris_deploy.execution.backends import Graph
from cris_deploy.execution.cuda.device import Lane
from cris_deploy.execution.cuda.graph import BoundGraph, DeviceGraph
from cris_deploy.pixels.image import Pixels

_TEXT = ("words", "sentence", "padding")
_SCENE = ("f3", "f4", "f5")


def bind(graphs: Mapping[GraphName, Graph], image: NDArray[Any], tokens: NDArray[Any]) -> Bound:
    """Bind the three stages of an engine on a GPU; see `contestants.Network`."""
    stages = {name: cast(DeviceGraph, graph) for name, graph in graphs.items()}
    device = stages[GraphName.IMAGE_ENCODER].device
    cuda = device.cuda
    timed = cuda.core.EventOptions(timing_enabled=True)

    def queue(lane: Lane, *, upload: bool) -> BoundGraph:
        scene = stages[GraphName.IMAGE_ENCODER].bound(lane, {"image": len(image)})
        text = stages[GraphName.TEXT_ENCODER].bound(lane, {"tokens": len(tokens)})
        if upload:
            lane.upload(
                image.astype(scene.inputs["image"].dtype, copy=False), scene.inputs["image"]
            )
            lane.upload(tokens, text.inputs["tokens"])
        scene.launch()
        text.launch()
        rows = {**dict.fromkeys(_TEXT, len(tokens)), **dict.fromkeys(_SCENE, len(image))}
        decoder = stages[GraphName.MASK_DECODER].bound(lane, rows)
        for name, count in rows.items():
            source = scene if name in _SCENE else text
            decoder.fill(name, [source.outputs[name].rows(0, count)])
        decoder.launch()
        return decoder

    def run() -> Clocked:
        with device.lane() as lane:
            start = cuda.run(lane.stream.core.record, options=timed)
            queue(lane, upload=False)
            end = cuda.run(lane.stream.core.record, options=timed)
            cuda.run(end.sync)
        return Clocked((end - start) / 1e3)

    def logits() -> NDArray[Any]:
        with device.lane() as lane:
            decoder = queue(lane, upload=True)
            return lane.download(decoder.outputs["logits"].rows(0, len(tokens)))[0].copy()

    return Bound(run, logits)


def device_pass(engine: Engine, rgb: Pixels) -> Callable[[str], Clocked]:
    """From an image (H, W, 3) on the GPU to its mask there."""
    import torch

    image = torch.from_numpy(rgb.copy()).cuda()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()

    def run(expression: str) -> Clocked:
        return clocked(lambda: engine.segment_on_device(image, expression, stream=stream), stream)

    return run


def clocked(work: Callable[[], object], stream: Any) -> Clocked:
    """Queue work on a stream of PyTorch, wait for it, and give the device's time for it."""
    import torch

    # PyTorch leaves the constructor untyped.
    start, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    start.record(stream)
    work()
    end.record(stream)
    end.synchronize()
    return Clocked(start.elapsed_time(end) / 1e3)
