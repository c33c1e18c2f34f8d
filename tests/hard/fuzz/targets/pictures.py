"""Pictures: files of every kind, PIL images and arrays become pixels and the network's square."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from PIL import Image

from cris_deploy.pixels.image import MEAN, decode, letterbox, most_bytes, normalise
from tests.hard.fuzz.draw import Draw, damaged
from tests.hard.fuzz.target import CORPUS

READER: Final = ("cris_deploy.pixels.decoding", "cris_deploy.pixels.image")
OTHERS: Final = {"cris_deploy.pixels.image:normalise_all": "it reads nothing of a file"}
MOST: Final = 2**16
SIDE: Final = 32
MODES: Final = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA")
TYPES: Final = ("u1", "u2", "?", "f4", "i8", ">u2", "c8", "O", "S2")


def make(folder: Path) -> Callable[[bytes], None]:
    cv2.setNumThreads(1)
    long = folder / "long"
    long.touch()
    os.truncate(long, most_bytes(MOST) + 1)
    files = [path.read_bytes()[1:] for path in sorted((CORPUS / "pictures").glob("file-*"))]

    def case(data: bytes) -> None:
        draw = Draw(data)
        kind = draw.whole(0, 7)
        if kind == 0:
            _check(decode(_checksums(draw.rest()), MOST))
        elif kind == 1:
            _check(decode(_checksums(damaged(draw.choose(files), draw)), MOST))
        elif kind == 2:
            path = folder / "picture"
            path.write_bytes(draw.rest())
            _check(decode(path, MOST))
        elif kind == 3:
            _check(decode(draw.choose((folder, folder / "none", "a\0b", "x" * 5000, long)), MOST))
        elif kind == 4:
            _check(decode(_pil(draw, folder), MOST))
        elif kind == 5:
            _check(decode(_array(draw), MOST))
        else:
            # As they are, at the end of the draw: libFuzzer's own changes of a file.
            _check(decode(draw.rest(), MOST))

    return case


def _check(pixels: np.ndarray) -> None:
    assert pixels.dtype == np.uint8
    height, width, channels = pixels.shape
    assert channels == 3
    assert 0 < height * width <= MOST
    square = letterbox(pixels, SIDE)
    assert square.shape == (SIDE, SIDE, 3)
    planes = normalise(square)
    assert planes.shape == (3, SIDE, SIDE)
    assert np.isfinite(planes).all()
    if height > 2 * width:  # the corner is padding: the mean colour, to a byte's rounding
        assert np.abs(square[0, 0] - 255 * np.array(MEAN)).max() <= 1


def _checksums(data: bytes) -> bytes:
    """A PNG's checksums made right, so that what is behind them is reached."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        end = at + 8 + length
        if end + 4 > len(data):
            break
        out += data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(out) + data[at:]


def _pil(draw: Draw, folder: Path) -> Image.Image:
    mode = draw.choose((*MODES, "I;16", "I;16B", "La", "RGBa", "RGBX"))
    size = draw.choose(((5, 4), (0, 4), (4, 0), (1, 1), (300, 300), (70000, 1)))
    image = Image.new(mode, size)
    if mode == "I" and size == (5, 4):
        image.putpixel((1, 1), draw.choose((-1, 255, 256, 65535, 65536, 2**31 - 1)))
    if mode == "F" and size == (5, 4):
        image.putpixel((1, 1), draw.real())
    if draw.flag():
        return image
    stream = io.BytesIO()
    Image.new("RGB", (5, 4)).save(stream, draw.choose(("PNG", "JPEG", "GIF", "BMP", "TIFF")))
    data = damaged(stream.getvalue(), draw)
    try:
        return Image.open(io.BytesIO(data))
    except Exception:  # what Pillow cannot open nobody can hand over
        return image


def _array(draw: Draw) -> Any:
    shape = draw.choose(
        ((5, 4, 3), (5, 4), (5, 4, 1), (5, 4, 4), (3, 5, 4), (0, 4, 3), (5,), (), (1, 1, 1, 3))
    )
    dtype = np.dtype(draw.choose(TYPES))
    array = np.zeros(shape, dtype)
    kind = draw.whole(0, 7)
    if kind == 0 and array.ndim == 3:
        return array[::-1, :, ::-1]
    if kind == 1:
        return np.broadcast_to(
            np.zeros((1, 1, 1), dtype), draw.choose(((2**20, 2**30, 3), (5, 4, 3)))
        )
    if kind == 2:
        return np.asfortranarray(array)
    if kind == 3:
        array.flags.writeable = False
    if kind == 4:
        return draw.choose((None, 3, [[1]], "", b"", bytearray(b"x"), memoryview(b"\x89PNG")))
    return array
