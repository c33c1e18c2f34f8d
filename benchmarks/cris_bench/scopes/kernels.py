"""The fused mask step against the step as training does it, on this machine.

The reference is PyTorch's sigmoid and bicubic resize, OpenCV's warp and NumPy's comparison. All
contestants of a size are timed in turn, so that a drifting machine favours nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cris_bench.record.machine import Machine, describe
from cris_bench.scopes import kernels_cuda
from cris_bench.scopes.timing import Timing, interleave
from cris_deploy.errors import BackendError, InputError
from cris_deploy.pixels.image import Letterbox
from cris_deploy.pixels.mask import KernelsBuild, Output, Upsampling, kernels_status, upsample_masks

INPUT_SIZE = 416
SOURCE = 104
SIZES = ((480, 640), (1080, 1920), (2160, 3840))
# A pixel this near the threshold may fall on either side: the reference itself rounds by as much.
UNDECIDED = 1e-5
REFERENCE = "reference"


class Content(Enum):
    """What the logits hold: a network's few blobs, or noise, where no block is all 0 or all 1."""

    BLOBS = "blobs"
    NOISE = "noise"


@dataclass(frozen=True)
class KernelOptions:
    """What to time.

    Attributes:
        sizes: Image (height, width) of each row of the table.
        content: What the logits hold.
        warmup: Untimed rounds of each size.
        iterations: Timed rounds of each size.
        threads: CPU threads of every contestant, None for all.
        seed: Of the logits.
    """

    sizes: tuple[tuple[int, int], ...] = SIZES
    content: Content = Content.BLOBS
    warmup: int = 5
    iterations: int = 50
    threads: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class SizeResult:
    """One image size.

    Attributes:
        height, width: Of the image.
        timings: Raw times; the reference first. A name that starts with "cuda" was timed on the
            device by events, all others by the wall clock.
        differing: Pixels in which the exact mask differs from the reference's.
        decided: Those of them whose reference value is further than 1e-5 from the threshold.
    """

    height: int
    width: int
    timings: tuple[Timing, ...]
    differing: int
    decided: int


@dataclass(frozen=True)
class KernelsResult:
    """Everything a record holds. `bandwidth` is the device's copy bandwidth, bytes per second."""

    machine: Machine
    simd: str
    threads: int
    options: KernelOptions
    sizes: tuple[SizeResult, ...]
    device: str | None = None
    bandwidth: float | None = None


def run(options: KernelOptions) -> KernelsResult:
    """Time the mask step. Raises InputError, and BackendError where the extension is not built."""
    status = kernels_status()
    if status.build is not KernelsBuild.BUILT or status.simd is None:
        raise BackendError(f"the kernels cannot be timed: {status.reason}")
    if options.iterations < 1 or options.warmup < 0:
        raise InputError("iterations must be at least 1 and warmup at least 0")
    import cv2  # both heavy, and not wanted for --help
    import torch

    machine = describe()
    threads = options.threads or machine.cores
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    logits = make_logits(options.content, options.seed)
    on_device = bool(status.cuda) and torch.cuda.is_available()
    sizes = tuple(_time_size(logits, size, threads, options, on_device) for size in options.sizes)
    return KernelsResult(
        machine,
        status.simd,
        threads,
        options,
        sizes,
        torch.cuda.get_device_name() if on_device else None,
        kernels_cuda.copy_bandwidth() if on_device else None,
    )


def make_logits(content: Content, seed: int) -> NDArray[np.float32]:
    """Give one (SOURCE, SOURCE) map of logits."""
    generator = np.random.default_rng(seed)
    if content is Content.NOISE:
        return generator.normal(0, 3, (SOURCE, SOURCE)).astype(np.float32)
    y, x = np.mgrid[0:SOURCE, 0:SOURCE] / SOURCE
    logits = np.full((SOURCE, SOURCE), -6.0)
    for _ in range(3):
        center_y, center_x, radius = generator.uniform(0.15, 0.85, 3)
        distance = (y - center_y) ** 2 + (x - center_x) ** 2
        logits += 12 * np.exp(-distance / (0.05 + radius / 5) ** 2)
    return logits.astype(np.float32)


def reference_step(logits: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Values at image size (height, width), as training makes them, of logits (h, w)."""
    import cv2
    import torch

    values = torch.sigmoid(torch.from_numpy(logits))[None, None]  # (1, 1, h, w)
    square = torch.nn.functional.interpolate(
        values, (INPUT_SIZE, INPUT_SIZE), mode="bicubic", align_corners=True
    )
    return np.asarray(
        cv2.warpAffine(
            square[0, 0].numpy(),
            Letterbox(height, width, INPUT_SIZE).inverse,
            (width, height),
            flags=cv2.INTER_CUBIC,
            borderValue=0.0,
        ),
        dtype=np.float32,
    )


def _time_size(
    logits: NDArray[np.float32],
    size: tuple[int, int],
    threads: int,
    options: KernelOptions,
    on_device: bool,
) -> SizeResult:
    from cris_train.data.target import THRESHOLD  # beside cv2, which --help does not want

    batch, threshold = logits[None], np.float32(THRESHOLD)
    kept = [np.empty(size, np.bool_)]

    def ours(**changes: Any) -> Callable[[], object]:
        return lambda: upsample_masks(
            batch, [size], INPUT_SIZE, THRESHOLD, threads=threads, **changes
        )

    timings = interleave(
        {
            REFERENCE: lambda: reference_step(logits, *size) > threshold,
            "mask": ours(),
            "mask, own array": ours(out=kept),
            "mask, direct": ours(upsampling=Upsampling.DIRECT),
            "RLE": ours(outputs=Output.RLE),
            "packed bits": ours(outputs=Output.PACKED),
            "area and box": ours(outputs=Output.NONE),
        },
        warmup=options.warmup,
        iterations=options.iterations,
    )
    if on_device:
        seconds = kernels_cuda.time_mask(
            logits, size, INPUT_SIZE, THRESHOLD, options.warmup, options.iterations
        )
        timings.append(Timing("cuda mask", seconds))
    values = reference_step(logits, *size)
    mask = upsample_masks(batch, [size], INPUT_SIZE, THRESHOLD)[0].mask
    differs = mask != (values > threshold)
    return SizeResult(
        *size,
        tuple(timings),
        int(np.count_nonzero(differs)),
        int(np.count_nonzero(differs & (np.abs(values - threshold) > UNDECIDED))),
    )
