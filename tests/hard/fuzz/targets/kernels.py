"""Arguments of the compiled mask step and letterbox: any array, any geometry, any count."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np

from cris_deploy.errors import CrisError, InputError
from cris_deploy.pixels import kernels as compiled
from cris_deploy.pixels import mask, without_kernels
from cris_deploy.pixels.image import Letterbox
from cris_deploy.pixels.mask import Output, Upsampling, upsample_masks
from tests.hard.fuzz.draw import Draw

READER: Final = ("cris_deploy.pixels.mask",)
OTHERS: Final = {
    "cris_deploy.pixels.mask:mask_from_logits": "it asks for one mask",
}
LONGEST: Final = 1024
OUTPUTS: Final = Output.MASK | Output.PACKED | Output.PROBABILITIES | Output.RLE
# Of two cubic filters in float32 beside float64, of values up to 1 (tests/kernels).
CLOSE: Final = 2e-5
SIDES: Final = (1, 2, 3, 7, 8, 16, 63, 64, 65, 100)
STRANGE: Final = (0, -1, 2**20, 2**20 + 1, 2**31, 2**40, 2**63 - 1)


def make(folder: Path) -> Callable[[bytes], None]:
    load = compiled.load_kernels
    extension: Any = load()
    assert extension is not None, "the extension is not built"
    best = extension.simd()
    sets = [best]
    for name in ("portable", "avx2"):
        try:
            extension.select_simd(name)
        except CrisError:
            continue
        sets.append(name)

    def case(data: bytes) -> None:
        draw = Draw(data)
        extension.select_simd(draw.choose(sets))
        kind = draw.whole(0, 7)
        if kind < 3:
            _right(draw)
        elif kind == 3:
            _raw(extension, draw)
        elif kind == 4:
            _letterbox(extension, draw)
        elif kind == 5:
            drawn = _array(draw, draw.choose(("?", "u1", "f4")))
            assert _typed(extension.rle, drawn) == without_kernels.rle(drawn)
        elif kind == 6:
            extension.select_simd(draw.choose((best, "", "sse9", "avx2\0", "x" * 300)))
        else:
            # As where the extension is not built, too.
            with mock.patch.object(mask, "load_kernels", draw.choose((lambda: None, load))):
                _python(draw)

    return case


def _right(draw: Draw) -> None:
    """Valid arguments, any logits: each output says the same as the float64 step."""
    side = draw.choose((1, 2, 4, 13, 26))
    size = 4 * side
    dtype = draw.choose((np.float32, np.float16))
    values = np.frombuffer(draw.take(64), np.int8).astype(dtype) / 8
    special = (np.nan, np.inf, -np.inf, 60000.0, -1e-7)
    count = draw.whole(1, 2)
    logits = np.resize(values, (count, side, side))
    if draw.flag():
        logits[0, draw.whole(0, side - 1), draw.whole(0, side - 1)] = draw.choose(special)
    sizes = [(draw.choose(SIDES), draw.choose(SIDES)) for _ in range(count)]
    threshold = draw.whole(0, 100) / 100
    way = draw.choose(tuple(Upsampling))
    threads = draw.choose((*[1] * 9, None, 2, 3))  # to wake one takes longer than the mask
    found = upsample_masks(
        logits, sizes, size, threshold, outputs=OUTPUTS, upsampling=way, threads=threads
    )
    for item, (height, width), one in zip(logits, sizes, found, strict=True):
        box = Letterbox(height, width, size)
        assert one.mask is not None
        assert one.probabilities is not None
        expected = without_kernels.probabilities(item, box, direct=way is Upsampling.DIRECT)
        np.testing.assert_allclose(one.probabilities, expected, atol=CLOSE)
        near = np.abs(expected - np.float32(threshold)) <= CLOSE
        assert (one.mask == (expected > np.float32(threshold)))[~near].all()
        np.testing.assert_array_equal(one.mask, one.probabilities > np.float32(threshold))
        np.testing.assert_array_equal(one.packed, np.packbits(one.mask, axis=1))
        assert one.counts == without_kernels.rle(one.mask)
        assert one.area == one.mask.sum()
        rows, columns = np.flatnonzero(one.mask.any(1)), np.flatnonzero(one.mask.any(0))
        wanted = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if one.area else None
        assert one.box == wanted


def _array(draw: Draw, kind: str) -> Any:
    """An array of any layout: strides, a start that is not aligned, read only, no array."""
    shape = draw.choose(((1, 8, 8), (2, 4, 4), (8, 8), (0, 8, 8), (1, 0, 8), (4, 5, 3), (3,), ()))
    layout = draw.whole(0, 7)
    dtype = np.dtype(kind)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(size + 8, np.uint8)
    array = raw[layout : layout + size].view(np.uint8)
    array = np.frombuffer(array.tobytes(), dtype).reshape(shape).copy()
    if layout == 1:
        raw[1 : 1 + size] = np.frombuffer(array.tobytes(), np.uint8)
        return np.ndarray(shape, dtype, raw.data, offset=1)
    if layout == 2:
        return np.asfortranarray(array)
    if layout == 3 and array.ndim:
        return array[::-1]
    if layout == 4:
        return np.broadcast_to(np.zeros((), dtype), (*shape[:-1], 2**20) if shape else (2**40,))
    if layout == 5:
        array.flags.writeable = False
    if layout == 6:
        return draw.choose((None, [[1.0]], 3, b"x"))
    return array


def _frame(extension: Any, draw: Draw) -> Any:
    height = draw.choose((*SIDES, *STRANGE[:2], *STRANGE[3:]))
    return extension.Frame(
        height,
        draw.choose(SIDES),
        scale_y=draw.real(),
        offset_y=draw.real(),
        scale_x=draw.choose((1.0, draw.real())),
        offset_x=draw.real(),
    )


def _raw(extension: Any, draw: Draw) -> None:
    """The binding itself, whose arguments nobody checked before."""
    logits = _array(draw, draw.choose(("f4", "f2", "f8", ">f4", "i4")))
    count = draw.whole(0, 2)
    frames = [_frame(extension, draw) for _ in range(count)]
    thresholds = [draw.choose((0.5, 0.0, 1.0, draw.real())) for _ in range(count)]
    out = [_array(draw, "?") for _ in range(count)] if draw.flag() else None
    _typed(
        extension.upsample,
        logits,
        frames,
        thresholds,
        draw.choose((32, 64, 416, 1, *STRANGE)),
        direct=draw.flag(),
        probabilities=draw.flag(),
        rle=draw.flag(),
        out=out,
        threads=draw.choose((0, 1, 2, -1, 2**31 - 1)),
    )


def _typed(function: Any, *arguments: Any, **options: Any) -> Any:
    """Call the extension; pybind11 has its own error for what is no array or no int of C."""
    try:
        return function(*arguments, **options)
    except TypeError as error:
        raise InputError(str(error)[:500]) from None


def _letterbox(extension: Any, draw: Draw) -> None:
    rgb = _array(draw, draw.choose(("u1", "u1", "i1", "f4")))
    frame = extension.Frame(
        4, 5, scale_y=draw.real(), offset_y=draw.real(), scale_x=draw.real(), offset_x=draw.real()
    )
    planes = _typed(extension.letterbox, rgb, frame, draw.choose((1, 2, 33, *STRANGE)))
    assert np.isfinite(planes).all()


def _python(draw: Draw) -> None:
    """The typed function before it, with up to three arguments of any kind."""
    out = np.zeros((8, 8), np.bool_)
    given: dict[str, Any] = {
        "logits": np.full((1, 8, 8), draw.whole(-9, 9), np.float32),
        "sizes": [(8, 8)],
        "input_size": 32,
        "thresholds": 0.5,
        "outputs": draw.choose((OUTPUTS, Output.PACKED)),
        "out": draw.choose((None, [out])),
        "threads": 1,
    }
    others: dict[str, Callable[[], Any]] = {
        "logits": lambda: _array(draw, draw.choose(("f4", "f2", "f8"))),
        "sizes": lambda: [
            (draw.choose((8, *STRANGE[:2])), draw.choose((8, 0))) for _ in range(draw.whole(0, 2))
        ],
        "input_size": lambda: draw.choose(STRANGE),
        "thresholds": lambda: draw.choose(([0.5], [], [0.1, 0.2], draw.real())),
        "out": lambda: draw.choose(([], [out.T], [out[:, :4]], [_array(draw, "?")])),
        "threads": lambda: draw.choose((None, 0, 2**40, 1.5, True, "2")),
    }
    for _ in range(draw.whole(0, 3)):
        name = draw.choose(tuple(others))
        given[name] = others[name]()
    upsample_masks(**given)
