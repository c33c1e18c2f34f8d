"""The mask step and the letterbox on a CUDA device, for arrays that are there already.

Arrays come from any library that speaks DLPack or `__cuda_array_interface__` (PyTorch, CuPy,
pycuda, cuda-python); nothing is copied. The caller gives the stream and all memory: a call
allocates nothing, waits for nothing, and can be captured in a CUDA graph. Data must be ready in
the order of that stream. On a device COCO run lengths are not made: copy the packed bits back, an
eighth of the mask, and use `cris_deploy.pixels.measures.rle` on the host.
"""

from collections.abc import Sequence
from types import ModuleType

from cris_deploy.errors import BackendError
from cris_deploy.pixels.image import Letterbox
from cris_deploy.pixels.kernels import kernel_frame, load_kernels
from cris_deploy.pixels.mask import Upsampling

STATS = 5
"""Columns of `stats`: area, x0, y0, x1, y1 (x1 and y1 exclusive; x0 >= x1 for an empty mask)."""


def workspace_bytes(
    sizes: Sequence[tuple[int, int]], input_size: int, source: tuple[int, int]
) -> int:
    """Bytes of device memory `upsample_masks` needs beside its arguments.

    `sizes` are the images' (height, width), `source` the (h, w) of one map of logits. Raises
    InputError, and BackendError if the extension has no CUDA code.
    """
    kernels = _cuda_kernels()
    return int(kernels.cuda_workspace_bytes(_frames(kernels, sizes, input_size), *source))


def upsample_masks(
    logits: object,
    sizes: Sequence[tuple[int, int]],
    input_size: int,
    thresholds: Sequence[float],
    workspace: object,
    *,
    masks: Sequence[object] | None = None,
    packed: Sequence[object] | None = None,
    probabilities: Sequence[object] | None = None,
    stats: object | None = None,
    upsampling: Upsampling = Upsampling.EXACT,
    stream: int = 0,
) -> None:
    """Queue the mask step of n images on `stream` (the address of a cudaStream_t, 0 the default).

    All arrays are C-contiguous and on one device: `logits` (n, h, w) float32 or float16;
    `workspace` (at least `workspace_bytes`,) uint8, aligned to 256 bytes, free for other use on the
    same stream afterwards. What is given of these is written: `masks`, n of (H, W) bool or uint8;
    `packed`, n of (H, ceil(W / 8)) uint8, the first pixel in the highest bit; `probabilities`, n of
    (H, W) float32; `stats` (n, 5) int64, see `STATS`. The pixels equal the CPU's bit for bit where
    that has a fused multiply-add. Raises InputError for a bad argument, BackendError if the
    extension has no CUDA code or CUDA reports an error.
    """
    kernels = _cuda_kernels()
    kernels.cuda_upsample(
        logits,
        _frames(kernels, sizes, input_size),
        list(thresholds),
        input_size,
        workspace,
        masks=masks,
        packed=packed,
        probabilities=probabilities,
        stats=stats,
        direct=upsampling is Upsampling.DIRECT,
        stream=stream,
    )


def letterbox(rgb: object, height: int, width: int, out: object, *, stream: int = 0) -> None:
    """Queue letterbox and normalisation of one image on `stream`.

    `rgb` (height, width, 3) uint8, `out` (3, S, S) float32 or float16, both C-contiguous and on one
    device. Within one of 255 levels of `letterbox` with `normalise` in `cris_deploy.pixels.image`.
    Raises InputError for a bad argument, BackendError if the extension has no CUDA code or CUDA
    reports an error.
    """
    kernels = _cuda_kernels()
    size = int(getattr(out, "shape", (0, 1))[1])  # the extension checks the whole shape
    kernels.cuda_letterbox(
        rgb, kernel_frame(kernels, Letterbox(height, width, size)), out, stream=stream
    )


def _frames(kernels: ModuleType, sizes: Sequence[tuple[int, int]], input_size: int) -> list[object]:
    return [kernel_frame(kernels, Letterbox(height, width, input_size)) for height, width in sizes]


def _cuda_kernels() -> ModuleType:
    kernels = load_kernels()
    if kernels is None or not kernels.CUDA_ARCHITECTURES:
        raise BackendError(
            "cris_deploy._kernels was built without CUDA: put nvcc on PATH and install with "
            "pip install . -C cmake.define.CRIS_CUDA=ON, or use cris_deploy.pixels.mask"
        )
    return kernels
