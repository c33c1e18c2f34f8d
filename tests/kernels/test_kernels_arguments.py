"""Bad input to the kernels: an error of ours that names the argument, never a crash."""

from typing import Any

import numpy as np
import pytest

from cris_deploy.errors import BackendError, InputError
from cris_deploy.pixels import mask as masks
from cris_deploy.pixels.mask import mask_from_logits, upsample_masks

kernels = pytest.importorskip("cris_deploy._kernels", reason="the extension is not built")

LOGITS = np.zeros((1, 104, 104), np.float32)


def frame(height: Any = 30, width: Any = 40, **changes: float) -> Any:
    values = {"scale_y": 10.4, "offset_y": 52.0, "scale_x": 10.4, "offset_x": 0.0, **changes}
    return kernels.Frame(height, width, **values)


@pytest.mark.parametrize(
    ("logits", "word"),
    [
        (LOGITS.astype(np.float64), "float64"),
        (LOGITS.astype(np.int32), "int32"),
        (LOGITS.astype(">f4"), "native byte order"),
        (LOGITS[0], "shape"),
        (LOGITS[None], "shape"),
        (np.zeros((1, 0, 104), np.float32), "logits"),
        (np.zeros((1, 104, 0), np.float32), "logits"),
        (np.zeros((1, 5000, 1), np.float32), "logits"),
        (np.zeros((1, 104, 208), np.float32)[:, :, ::2], "contiguous"),
        (np.zeros((2, 104, 104), np.float32), "frames"),
        (np.zeros((1, 200, 200), np.float32), "input_size"),
        (np.zeros((0, 104, 104), np.float32), "frames"),
    ],
)
def test_logits(logits: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        kernels.upsample(logits, [frame()], [0.35], 416)


@pytest.mark.parametrize("name", ["scale_y", "offset_y", "scale_x", "offset_x"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_geometry_must_be_finite(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        frame(**{name: value})


@pytest.mark.parametrize("name", ["scale_y", "scale_x"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_scale_must_be_positive(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        frame(**{name: value})


@pytest.mark.parametrize(
    "size", [(0, 40), (30, 0), (-1, 40), (2**21, 1), (1, 2**21), (2**16, 2**16), (2**62, 2**62)]
)
def test_image_size(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="height x width"):
        frame(*size)


@pytest.mark.parametrize("threshold", [-1e-9, 1 + 1e-9, np.nan, np.inf])
def test_threshold(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold"):
        kernels.upsample(LOGITS, [frame()], [threshold], 416)


@pytest.mark.parametrize("thresholds", [[], [0.3, 0.4]])
def test_one_threshold_for_each(thresholds: list[float]) -> None:
    with pytest.raises(InputError, match="thresholds"):
        kernels.upsample(LOGITS, [frame()], thresholds, 416)


@pytest.mark.parametrize("size", [0, -416, 100, 2**40])
def test_input_size(size: int) -> None:
    with pytest.raises(InputError, match="input_size"):
        kernels.upsample(LOGITS, [frame()], [0.35], size)


def read_only() -> np.ndarray:
    array = np.zeros((30, 40), np.bool_)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "word"),
    [
        ([np.zeros((30, 41), np.bool_)], "shape"),
        ([np.zeros((30, 40, 1), np.bool_)], "shape"),
        ([np.zeros((40, 30), np.bool_)], "shape"),
        ([np.zeros((30, 40), np.uint8)], "dtype"),
        ([np.zeros((30, 80), np.bool_)[:, ::2]], "contiguous"),
        ([np.zeros((40, 30), np.bool_).T], "contiguous"),
        ([read_only()], "writeable"),
        ([], "out"),
        ([np.zeros((30, 40), np.bool_)] * 2, "out"),
        ([None], "NumPy"),
    ],
)
def test_out(out: list[Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        kernels.upsample(LOGITS, [frame()], [0.35], 416, out=out)


def test_threads() -> None:
    with pytest.raises(InputError, match="threads"):
        kernels.upsample(LOGITS, [frame()], [0.35], 416, threads=-1)
    with pytest.raises(InputError, match="threads"):
        upsample_masks(LOGITS, [(30, 40)], 416, 0.35, threads=0)


def test_huge_finite_geometry_is_all_border() -> None:
    # Finite, so allowed: every pixel maps outside the square.
    far = [frame(offset_x=1e300), frame(offset_x=-1e300), frame(scale_y=1e300, offset_y=1e308)]
    logits = np.full((3, 104, 104), 9, np.float32)
    for result in kernels.upsample(logits, far, [0.0] * 3, 416):
        assert result.area == 0


def test_python_face() -> None:
    with pytest.raises(InputError, match="one map"):
        mask_from_logits(LOGITS, 30, 40, 416, 0.35)
    with pytest.raises(InputError, match="NumPy"):
        upsample_masks([[0.0]], [(30, 40)], 416, 0.35)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="height"):
        mask_from_logits(LOGITS[0], 0, 40, 416, 0.35)
    with pytest.raises(InputError, match="threshold"):
        mask_from_logits(LOGITS[0], 30, 40, 416, 2)


@pytest.mark.parametrize(
    "mask",
    [np.zeros((3, 4), np.uint8), np.zeros(4, np.bool_), np.zeros((0, 4), np.bool_), [[True]], None],
)
def test_masks(mask: Any) -> None:
    for operation in (masks.area, masks.box, masks.rle):
        with pytest.raises(InputError, match="mask"):
            operation(mask)


def test_rle_wants_contiguous() -> None:
    with pytest.raises(InputError, match="contiguous"):
        kernels.rle(np.zeros((30, 80), np.bool_)[:, ::2])
    with pytest.raises(InputError, match="bool"):
        kernels.rle(np.zeros((30, 80), np.uint8))


@pytest.mark.parametrize(
    ("rgb", "size", "word"),
    [
        (np.zeros((30, 40, 3), np.float32), 416, "uint8"),
        (np.zeros((30, 41, 3), np.uint8), 416, "shape"),
        (np.zeros((30, 40), np.uint8), 416, "shape"),
        (np.zeros((30, 80, 3), np.uint8)[:, ::2], 416, "contiguous"),
        (np.zeros((30, 40, 3), np.uint8), 0, "size"),
    ],
)
def test_letterbox(rgb: Any, size: int, word: str) -> None:
    with pytest.raises(InputError, match=word):
        kernels.letterbox(rgb, frame(), size)


def test_unknown_instruction_set() -> None:
    with pytest.raises(InputError, match="name"):
        kernels.select_simd("mmx")


class Device:
    """Looks like a device array; its address is never followed by a refused call."""

    def __init__(self, shape: tuple[int, ...], kind: str, **changes: Any) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": kind,
            "data": (4096, False),
            "version": 3,
            "strides": None,
            **changes,
        }


def device_call(**changes: Any) -> None:
    arguments = {
        "logits": Device((1, 104, 104), "<f4"),
        "frames": [frame()],
        "thresholds": [0.35],
        "input_size": 416,
        "workspace": Device((1 << 20,), "|u1"),
        **changes,
    }
    kernels.cuda_upsample(**arguments)


@pytest.mark.skipif(not kernels.CUDA_ARCHITECTURES, reason="built without CUDA")
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"logits": LOGITS}, "logits is not on a CUDA device"),
        ({"logits": 3}, "logits is a int"),
        ({"logits": Device((1, 104, 104), "<f8")}, "logits has element type"),
        ({"logits": Device((1, 104, 104), ">f4")}, "logits has type"),
        ({"logits": Device((104, 104), "<f4")}, "logits has shape"),
        ({"logits": Device((1, -4, 104), "<f4")}, "logits has shape"),
        ({"logits": Device((1, 104, 104), "<f4", strides=(1, 4, 416))}, "logits is not C-cont"),
        ({"thresholds": [1.5]}, "threshold"),
        ({"frames": []}, "frames"),
        ({"input_size": 0}, "input_size"),
        ({"workspace": Device((100,), "|u1")}, "workspace has 100 bytes"),
        ({"workspace": Device((1 << 20,), "|u1", data=(4100, False))}, "workspace starts"),
        ({"workspace": Device((1 << 20,), "|u1", data=(4096, True))}, "workspace is read-only"),
        ({"masks": [Device((30, 41), "|b1")]}, "masks has shape"),
        ({"masks": []}, "masks has 0 arrays"),
        ({"masks": [Device((30, 40), "<f4")]}, "masks has element type"),
        ({"packed": [Device((30, 40), "|u1")]}, "packed has shape"),
        ({"probabilities": [Device((30, 40), "<f2")]}, "probabilities has element type"),
        ({"stats": Device((1, 4), "<i8")}, "stats has shape"),
        ({"masks": [np.zeros((30, 40), np.bool_)]}, "masks is not on a CUDA device"),
    ],
)
def test_cuda_upsample(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        device_call(**changes)


@pytest.mark.skipif(not kernels.CUDA_ARCHITECTURES, reason="built without CUDA")
def test_address_that_is_not_on_a_device() -> None:
    # Without a driver the same call says so; either way nothing is launched.
    with pytest.raises(BackendError, match="logits"):
        device_call()


@pytest.mark.skipif(not kernels.CUDA_ARCHITECTURES, reason="built without CUDA")
@pytest.mark.parametrize(
    ("rgb", "out", "word"),
    [
        (Device((30, 40, 4), "|u1"), Device((3, 416, 416), "<f4"), "rgb has shape"),
        (Device((30, 40, 3), "<f4"), Device((3, 416, 416), "<f4"), "rgb has element type"),
        (Device((30, 40, 3), "|u1"), Device((3, 416, 400), "<f4"), "out has shape"),
        (Device((30, 40, 3), "|u1"), Device((3, 0, 0), "<f4"), "out has a side"),
        (Device((30, 40, 3), "|u1"), Device((3, 416, 416), "<f8"), "out has element type"),
    ],
)
def test_cuda_letterbox(rgb: Any, out: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        kernels.cuda_letterbox(rgb, frame(), out)


class Producer:
    """An array of a library that speaks DLPack; keeps the stream it is told to make wait."""

    def __init__(self) -> None:
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None) -> object:
        self.streams.append(stream)
        raise BufferError("asked for")


@pytest.mark.skipif(not kernels.CUDA_ARCHITECTURES, reason="built without CUDA")
def test_producers_are_told_the_stream_that_will_read() -> None:
    # What was made on a side stream is waited for by the stream of the call, and by no other: 0,
    # CUDA's default, is 1 in DLPack, which has -1 for "do not wait".
    image = Producer()
    for stream in (0, 2, 0x5150):
        with pytest.raises(BufferError, match="asked for"):
            kernels.cuda_letterbox(image, frame(), Device((3, 416, 416), "<f4"), stream=stream)
    assert image.streams == [1, 2, 0x5150]


def test_a_view_of_any_size_is_not_copied() -> None:
    with pytest.raises(InputError, match="logits have shape"):
        upsample_masks(np.broadcast_to(np.float32(0), (2**40,)), [(8, 8)], 32, 0.5)
