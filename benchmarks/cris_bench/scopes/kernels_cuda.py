"""Times of the mask step on a CUDA device, by the device's own clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cris_bench.scopes.timing import clocked
from cris_deploy.pixels import on_gpu as device

# Calls in one graph: the time is then the device's, and not that of queueing from Python.
REPEATS = 20
COPY_BYTES = 1 << 28


def time_mask(
    logits: NDArray[np.float32],
    size: tuple[int, int],
    input_size: int,
    threshold: float,
    warmup: int,
    iterations: int,
) -> tuple[float, ...]:
    """Seconds of each of `iterations` masks of `size` (height, width) from (h, w) logits."""
    import torch

    height, width = logits.shape
    source = torch.from_numpy(logits)[None].cuda()
    mask = torch.empty(size, dtype=torch.bool, device="cuda")
    needed = device.workspace_bytes([size], input_size, (height, width))
    workspace = torch.empty(needed, dtype=torch.uint8, device="cuda")

    def step(stream: int) -> None:
        device.upsample_masks(
            source, [size], input_size, [threshold], workspace, masks=[mask], stream=stream
        )

    return _times(step, warmup, iterations)


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a large copy on the device."""
    import torch

    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def step(_: int) -> None:
        target.copy_(source)

    return 2 * COPY_BYTES / statistics.median(_times(step, 2, 5))


def _times(step: Callable[[int], Any], warmup: int, iterations: int) -> tuple[float, ...]:
    import torch

    step(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            step(torch.cuda.current_stream().cuda_stream)
    stream = torch.cuda.current_stream()
    seconds = [clocked(graph.replay, stream).seconds for _ in range(warmup + iterations)]
    return tuple(value / REPEATS for value in seconds[warmup:])
