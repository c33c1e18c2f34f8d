"""From the network's logits to a mask at image size.

The step is CRIS's own (CVPR 2022, section 3.4: sigmoid, upsampling to the image, threshold): the
probabilities are resized to the square input with corners aligned, bicubic; warped back to the
image, bicubic, 0 outside the square; a pixel is in the mask if its value is above the threshold.
The compiled extension does all of it in one pass, with one filter per axis. Where the extension has
not been built, OpenCV and NumPy do the same, slower. A NaN logit counts as probability 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cris_deploy.arguments import MOST_THREADS, whole_or_none
from cris_deploy.errors import InputError
from cris_deploy.pixels import without_kernels
from cris_deploy.pixels.image import Letterbox
from cris_deploy.pixels.kernels import (
    KernelsBuild,
    KernelsStatus,
    kernel_frame,
    kernels_status,
    load_kernels,
)
from cris_deploy.pixels.measures import Box, Mask, Overlap, area, box, overlap, rle

__all__ = [
    "Box",
    "KernelsBuild",
    "KernelsStatus",
    "Logits",
    "Mask",
    "Output",
    "Overlap",
    "UpsampledMask",
    "Upsampling",
    "area",
    "box",
    "kernel_frame",
    "kernels_status",
    "mask_from_logits",
    "overlap",
    "rle",
    "upsample_masks",
]

_MOST_SIDE = 4096  # of logits, and of the square where it is in memory; a manifest has no larger

Logits: TypeAlias = NDArray[np.float32] | NDArray[np.float16]


class Upsampling(Enum):
    """EXACT is the reference's two bicubic steps; DIRECT one bicubic, a little cheaper."""

    EXACT = "exact"
    DIRECT = "direct"


class Output(Flag):
    """What `upsample_masks` computes; area and box come with every choice."""

    NONE = 0
    MASK = auto()
    PACKED = auto()
    PROBABILITIES = auto()
    RLE = auto()


@dataclass(frozen=True, slots=True)
class UpsampledMask:
    """One mask at image size; an output that was not asked for is None.

    `mask` is (H, W) bool; `packed` (H, ceil(W / 8)) uint8 as `numpy.packbits(mask, axis=1)` gives
    it; `probabilities` (H, W) float32, which overshoot 0..1 a little as bicubic filters do;
    `counts` COCO's compressed run lengths; `area` in pixels; `box` (x0, y0, x1, y1) with x1, y1
    exclusive, None for an empty mask.
    """

    height: int
    width: int
    area: int
    box: Box | None
    mask: Mask | None = None
    packed: NDArray[np.uint8] | None = None
    probabilities: NDArray[np.float32] | None = None
    counts: str | None = None


def mask_from_logits(
    logits: NDArray[np.float32], height: int, width: int, input_size: int, threshold: float
) -> Mask:
    """Give the mask (height, width) bool of one map of logits (h, w), float32 or float16.

    `input_size` is the side of the square the network saw, `threshold` a probability 0..1 (strict).
    Raises InputError, and KernelError if the extension is there but cannot be loaded.
    """
    if getattr(logits, "ndim", None) != 2:
        raise InputError(f"logits have shape {np.shape(logits)}: give one map (height, width)")
    result = upsample_masks(logits[None], [(height, width)], input_size, threshold)[0]
    assert result.mask is not None  # it was asked for
    return result.mask


def upsample_masks(
    logits: Logits,
    sizes: Sequence[tuple[int, int]],
    input_size: int,
    thresholds: float | Sequence[float],
    *,
    outputs: Output = Output.MASK,
    upsampling: Upsampling = Upsampling.EXACT,
    out: Sequence[Mask] | None = None,
    threads: int | None = None,
) -> list[UpsampledMask]:
    """Bring logits (n, h, w), float32 or float16, to n images of `sizes` (height, width).

    `thresholds` is one probability 0..1 for all or one for each. `out` takes n C-contiguous bool
    arrays (height, width) to write the masks into. `threads` is the number of CPU threads, None for
    all that the process may use. May be called from many threads; the GIL is released.
    Raises InputError, and KernelError if the extension is there but cannot be loaded.
    """
    if not isinstance(logits, np.ndarray):
        raise InputError(f"logits are a {type(logits).__name__}: give a NumPy array (n, h, w)")
    if logits.ndim != 3:  # before it is copied: a view may be of any size
        raise InputError(f"logits have shape {logits.shape}: give (n, h, w)")
    threads = whole_or_none("threads", threads, 1, MOST_THREADS, "all processors")
    limits = (
        [float(thresholds)] * len(sizes)
        if isinstance(thresholds, (int, float))
        else [float(value) for value in thresholds]
    )
    boxes = [Letterbox(height, width, input_size) for height, width in sizes]
    kernels = load_kernels()
    if kernels is None:
        return _without_kernels(logits, boxes, limits, outputs, upsampling, out)
    results = kernels.upsample(
        np.ascontiguousarray(logits),
        [kernel_frame(kernels, box) for box in boxes],
        limits,
        input_size,
        direct=upsampling is Upsampling.DIRECT,
        mask=Output.MASK in outputs,
        packed=Output.PACKED in outputs,
        probabilities=Output.PROBABILITIES in outputs,
        rle=Output.RLE in outputs,
        out=out,
        threads=threads or 0,
    )
    return [
        UpsampledMask(
            height,
            width,
            result.area,
            result.box,
            result.mask,
            result.packed,
            result.probabilities,
            result.counts,
        )
        for (height, width), result in zip(sizes, results, strict=True)
    ]


def _without_kernels(
    logits: Logits,
    boxes: Sequence[Letterbox],
    thresholds: Sequence[float],
    outputs: Output,
    upsampling: Upsampling,
    out: Sequence[Mask] | None,
) -> list[UpsampledMask]:
    _check_arguments(logits, boxes, thresholds, out)
    results = []
    for index, (frame, threshold) in enumerate(zip(boxes, thresholds, strict=True)):
        values = without_kernels.probabilities(
            logits[index], frame, direct=upsampling is Upsampling.DIRECT
        )
        mask = values > np.float32(threshold)
        if out is not None:
            out[index][...] = mask
            mask = out[index]
        results.append(
            UpsampledMask(
                frame.height,
                frame.width,
                area(mask),
                box(mask),
                mask if Output.MASK in outputs or out is not None else None,
                np.packbits(mask, axis=1) if Output.PACKED in outputs else None,
                values if Output.PROBABILITIES in outputs else None,
                without_kernels.rle(mask) if Output.RLE in outputs else None,
            )
        )
    return results


def _check_arguments(
    logits: Logits,
    frames: Sequence[Letterbox],
    thresholds: Sequence[float],
    out: Sequence[Mask] | None,
) -> None:
    # The extension makes these checks itself; this is the same for where it is absent.
    if logits.dtype not in (np.float32, np.float16):
        raise InputError(f"logits are {logits.dtype}: give float32 or float16 (n, h, w)")
    if not (len(logits) == len(frames) == len(thresholds)):
        raise InputError(
            f"{len(logits)} maps of logits, {len(frames)} sizes and {len(thresholds)} thresholds: "
            "give as many of each"
        )
    if len(logits) and not all(1 <= side <= _MOST_SIDE for side in logits.shape[1:]):
        raise InputError(f"logits have shape {logits.shape}: each side must be 1 to {_MOST_SIDE}")
    if any(frame.size > _MOST_SIDE for frame in frames):
        raise InputError(f"input_size is {frames[0].size}: it must be 1 to {_MOST_SIDE}")
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise InputError(f"thresholds holds {threshold}: a threshold is a probability, 0 to 1")
    if out is not None and len(out) != len(frames):
        raise InputError(f"out has {len(out)} arrays for {len(frames)} images: give one for each")
    for frame, array in zip(frames, out or (), strict=False):
        shape = (frame.height, frame.width)
        if getattr(array, "dtype", None) != np.bool_ or array.shape != shape:
            raise InputError(f"out has another kind of array: give bool {shape} for that image")
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise InputError("out must be C-contiguous and writeable")
