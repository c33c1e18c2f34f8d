"""Other libraries' device arrays and streams: PyTorch, CuPy, pycuda, Numba, cuda-python."""

from typing import Any

from cris_deploy.errors import ImageError, InputError
from cris_deploy.execution.cuda.api import Cuda
from cris_deploy.execution.cuda.memory import Stream

# Where the libraries keep the address of a stream: PyTorch, pycuda, CuPy.
_HANDLES = ("cuda_stream", "handle", "ptr")
# kDLCUDA and kDLCUDAManaged
_DLPACK_CUDA = (2, 13)


def image_size(image: object, max_pixels: int) -> tuple[int, int]:
    """Give (height, width) of an image on a device; ImageError if it is not (H, W, 3) uint8."""
    if not _on_device(image):
        raise ImageError(
            f"image is a {type(image).__module__}.{type(image).__qualname__}: give an array on a "
            "CUDA device (DLPack or __cuda_array_interface__), or use segment for one on the host"
        )
    shape = tuple(int(side) for side in _shape(image))
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ImageError(f"image has shape {shape}: give (H, W, 3) uint8 RGB on the device")
    if shape[0] * shape[1] > max_pixels:
        raise ImageError(
            f"image has {shape[1]} x {shape[0]} = {shape[0] * shape[1]:,} pixels, over the limit "
            f"of {max_pixels:,}: scale it down or raise max_pixels"
        )
    return shape[0], shape[1]


def stream_handle(stream: object) -> int | None:
    """Give the address of a stream: an int, or a stream of one of the libraries; None for None.

    `__cuda_stream__` (cuda-core's protocol), `.cuda_stream` (PyTorch), `.handle` (pycuda), `.ptr`
    (CuPy), or what `int()` takes (cuda-python). Raises InputError.
    """
    if stream is None:
        return None
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in _HANDLES:
        value = getattr(stream, name, None)
        if value is not None:
            return int(value)
    try:
        handle: int = int(stream)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        handle = -1
    if handle < 0:
        raise InputError(
            f"stream is {stream!r}: give the address of a cudaStream_t, or a stream of PyTorch, "
            "CuPy, pycuda or cuda-python"
        )
    return handle


def wait_for_image(cuda: Cuda, stream: Stream, image: object, given: int | None) -> None:
    """Let a stream of ours wait for an image.

    For what is queued on `given`, or, if the caller gave none, on the stream that the image itself
    names, or else on the default stream. An image that speaks DLPack is asked for the rest: see
    `kernels/bindings/device_array.cpp`.
    """
    if given is None:
        interface: Any = getattr(image, "__cuda_array_interface__", None) or {}
        given = int(interface.get("stream") or 0)
    stream.after(cuda.stream(given))


def _on_device(image: Any) -> bool:
    if hasattr(image, "__dlpack_device__"):
        return int(image.__dlpack_device__()[0]) in _DLPACK_CUDA
    return hasattr(image, "__cuda_array_interface__")


def _shape(image: Any) -> Any:
    shape = getattr(image, "shape", None)
    return image.__cuda_array_interface__["shape"] if shape is None else shape
