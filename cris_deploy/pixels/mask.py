"""From the network's logits to a mask at image size, and what is read off a mask.

The step is CRIS's own (CVPR 2022, section 3.4: sigmoid, upsampling to the image, threshold): the
probabilities are resized to the square input with corners aligned, bicubic; warped back to the
image, bicubic, 0 outside the square; a pixel is in the mask if its value is above the threshold.
The compiled extension does all of it in one pass, with one filter per axis. Where the extension has
not been built, OpenCV and NumPy do the same, slower. A NaN logit counts as probability 0.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, Flag, auto
from functools import cache, lru_cache
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from cris_deploy.arguments import MOST_THREADS, whole_or_none
from cris_deploy.errors import InputError, KernelError
from cris_deploy.pixels.image import Letterbox

Mask: TypeAlias = NDArray[np.bool_]
Box: TypeAlias = tuple[int, int, int, int]
Logits: TypeAlias = NDArray[np.float32] | NDArray[np.float16]

_EXTENSION = "cris_deploy._kernels"
_INTERFACE = 1  # what this file expects of the extension; raised with it


class KernelsBuild(Enum):
    """Whether the compiled extension can be used."""

    BUILT = "built"
    NOT_BUILT = "not built"
    WRONGLY_BUILT = "wrongly built"


@dataclass(frozen=True, slots=True)
class KernelsStatus:
    """What `kernels_status` found.

    `simd` is the instruction set of the inner loops on this machine, `cuda` the GPU architectures
    that were compiled in (compute capability times ten, empty if none), `reason` says in one
    sentence why the extension is not in use and what to do, or is None.
    """

    build: KernelsBuild
    simd: str | None = None
    cuda: tuple[int, ...] = ()
    reason: str | None = None


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


class Overlap(NamedTuple):
    """Pixels that two masks share, and that either has."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union, 0 to 1; 1 if both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


def kernels_status() -> KernelsStatus:
    """Say whether the compiled extension is in use, and with what. Queries no GPU. Never raises."""
    try:
        kernels = load_kernels()
    except KernelError as error:
        return KernelsStatus(KernelsBuild.WRONGLY_BUILT, reason=str(error))
    if kernels is None:
        return KernelsStatus(
            KernelsBuild.NOT_BUILT,
            reason="cris_deploy._kernels is absent, OpenCV is used instead: "
            "install with a C++ compiler at hand (pip install .) for the fast mask step",
        )
    cuda = tuple(int(name) for name in kernels.CUDA_ARCHITECTURES.split(",") if name)
    return KernelsStatus(KernelsBuild.BUILT, simd=kernels.simd(), cuda=cuda)


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
    threads = whole_or_none("threads", threads, 1, MOST_THREADS, "all processors")
    limits = (
        [float(thresholds)] * len(sizes)
        if isinstance(thresholds, (int, float))
        else [float(value) for value in thresholds]
    )
    boxes = [Letterbox(height, width, input_size) for height, width in sizes]
    kernels = load_kernels()
    if kernels is None:
        return _upsample_opencv(logits, boxes, limits, outputs, upsampling, out)
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


def overlap(first: Mask, second: Mask) -> Overlap:
    """Compare two masks (H, W) bool of one size."""
    return Overlap(int(np.count_nonzero(first & second)), int(np.count_nonzero(first | second)))


def area(mask: Mask) -> int:
    """Count the pixels of a mask (H, W) bool."""
    return int(np.count_nonzero(_checked(mask)))


def box(mask: Mask) -> Box | None:
    """Give the smallest box (x0, y0, x1, y1), x1 and y1 exclusive, of a mask (H, W) bool.

    None for an empty mask. Raises InputError.
    """
    rows = np.flatnonzero(_checked(mask).any(axis=1))
    if not rows.size:
        return None
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[y0:y1].any(axis=0))
    return int(columns[0]), y0, int(columns[-1]) + 1, y1


def rle(mask: Mask) -> str:
    """Encode a mask (H, W) bool as COCO's compressed run lengths (the `counts` string).

    Raises InputError, and KernelError if the extension is there but cannot be loaded.
    """
    kernels = load_kernels()
    if kernels is not None:
        return str(kernels.rle(np.ascontiguousarray(_checked(mask))))
    return _rle_numpy(_checked(mask))


@cache
def load_kernels() -> ModuleType | None:
    """Import the compiled extension; None where it has not been built.

    Raises KernelError if it is there but cannot be loaded: a file that is there was meant to be
    used, so nothing falls back silently.
    """
    if importlib.util.find_spec(_EXTENSION) is None:
        return None
    remedy = "build it again (pip install --force-reinstall --no-deps .)"
    try:
        kernels = importlib.import_module(_EXTENSION)
    except ImportError as error:
        raise KernelError(
            f"{_EXTENSION} is present but cannot be loaded: {error}; {remedy}"
        ) from error
    interface = getattr(kernels, "INTERFACE", None)
    if interface != _INTERFACE:
        raise KernelError(
            f"{_EXTENSION} has interface {interface}, and {_INTERFACE} is wanted: {remedy}"
        )
    return kernels


@lru_cache(maxsize=256)
def kernel_frame(kernels: ModuleType, box: Letterbox) -> object:
    """Give a letterbox in the form the extension takes."""
    matrix = box.matrix  # no rotation or shear
    return kernels.Frame(
        box.height,
        box.width,
        scale_y=matrix[1, 1],
        offset_y=matrix[1, 2],
        scale_x=matrix[0, 0],
        offset_x=matrix[0, 2],
    )


def _checked(mask: Mask) -> Mask:
    if (
        not isinstance(mask, np.ndarray)
        or mask.dtype != np.bool_
        or mask.ndim != 2
        or not mask.size
    ):
        kind = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InputError(f"mask is {kind}: give a bool array (height, width), neither 0")
    return mask


def _upsample_opencv(
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
        values = _probabilities_opencv(logits[index], frame, upsampling)
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
                _rle_numpy(mask) if Output.RLE in outputs else None,
            )
        )
    return results


def _probabilities_opencv(
    logits: Logits, frame: Letterbox, upsampling: Upsampling
) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # exp(-x) of a very negative logit is inf, and 1 / inf is 0
        values = 1 / (1 + np.exp(-logits.astype(np.float32)))
    values = np.nan_to_num(np.asarray(values, dtype=np.float32), nan=0.0)
    size = frame.size
    matrix = frame.matrix
    x = matrix[0, 0] * np.arange(frame.width) + matrix[0, 2]
    y = matrix[1, 1] * np.arange(frame.height) + matrix[1, 2]
    if upsampling is Upsampling.DIRECT:
        return _gather(_gather(values, x, size, 1), y, size, 0)
    square = _gather(_gather(values, np.arange(size), size, 1), np.arange(size), size, 0)
    warped = cv2.warpAffine(
        square, frame.inverse, (frame.width, frame.height), flags=cv2.INTER_CUBIC, borderValue=0
    )
    return np.asarray(warped, dtype=np.float32)


def _gather(
    values: NDArray[np.floating], at: NDArray[np.generic], size: int, axis: int
) -> NDArray[np.float32]:
    # Bicubic with corners aligned along one axis, at positions `at` of the square: OpenCV's own
    # resize aligns the pixels' outer edges instead.
    count = values.shape[axis]
    position = np.clip(at * ((count - 1) / max(size - 1, 1)), 0, count - 1)
    cell = np.floor(position).astype(np.intp)
    t = position - cell
    a, u = -0.75, 1 - t
    weights = (
        a * t * u * u,
        ((a + 2) * t - (a + 3)) * t * t + 1,
        ((a + 2) * u - (a + 3)) * u * u + 1,
        a * u * t * t,
    )
    shape = (1, -1) if axis == 1 else (-1, 1)
    terms = (
        np.take(values, np.clip(cell - 1 + k, 0, count - 1), axis=axis)
        * weight.astype(np.float32).reshape(shape)
        for k, weight in enumerate(weights)
    )
    return np.asarray(sum(terms), dtype=np.float32)


def _check_arguments(
    logits: Logits,
    frames: Sequence[Letterbox],
    thresholds: Sequence[float],
    out: Sequence[Mask] | None,
) -> None:
    # The extension makes these checks itself; this is the same for where it is absent.
    if logits.dtype not in (np.float32, np.float16) or logits.ndim != 3:
        raise InputError(
            f"logits are {logits.dtype} {logits.shape}: give float32 or float16 (n, h, w)"
        )
    if not (len(logits) == len(frames) == len(thresholds)):
        raise InputError(
            f"{len(logits)} maps of logits, {len(frames)} sizes and {len(thresholds)} thresholds: "
            "give as many of each"
        )
    if len(logits) and 0 in logits.shape:
        raise InputError(f"logits have shape {logits.shape}: no side may be 0")
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise InputError(f"thresholds holds {threshold}: a threshold is a probability, 0 to 1")
    for frame, array in zip(frames, out or (), strict=out is not None):
        if array.dtype != np.bool_ or array.shape != (frame.height, frame.width):
            raise InputError(
                f"out is {array.dtype} {array.shape}: give bool ({frame.height}, {frame.width})"
            )


def _rle_numpy(mask: Mask) -> str:
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = [*([0] if flat[0] else []), *changes.tolist(), flat.size]
    counts = [ends[0], *(after - before for before, after in pairwise(ends))]
    text = bytearray()
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            digit = value & 0x1F
            value >>= 5
            # Five bits suffice when what is left repeats the sign bit of the digit.
            more = value != (-1 if digit & 0x10 else 0)
            text.append(48 + digit + (0x20 if more else 0))
    return text.decode("ascii")
