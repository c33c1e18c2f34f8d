"""Pictures in: a file, a PIL image or an array becomes RGB pixels, or an error says what it is.

A file gives exactly the pixels of OpenCV's colour decoder with the EXIF orientation applied, which
are the pixels a CRIS checkpoint was trained on; alpha is dropped, 16 bits are reduced to the upper
8.
"""

import contextlib
import io
import math
import os
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cris_deploy.arguments import whole
from cris_deploy.errors import ImageError

MAX_PIXELS = 100_000_000
"""Default limit on height * width; larger pictures are refused before they are decoded."""

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]
Pixels: TypeAlias = NDArray[np.uint8]

# Pillow's names of the formats that OpenCV decodes. Pillow only reads the header, so a format that
# it alone knows would be of no use here.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "SUN")
_READABLE = "JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, JPEG 2000 and AVIF are read"


def decode(image: ImageInput, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Give an image as (H, W, 3) uint8 RGB.

    - A path or bytes: any format OpenCV reads. Grey, palette, alpha (dropped), 16-bit and CMYK
      pictures become RGB, the EXIF orientation is applied, of an animation the first frame is used.
    - A PIL image of any mode; its pixels as they are (`PIL.ImageOps.exif_transpose` is the caller's
      choice, so that the mask has the size of the image that was given). Mode I holds 8-bit values
      if none is above 255, else 16-bit ones; mode F holds 0..1 if none is above 1, else 0..255.
    - An array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), RGB order, uint8, uint16 or bool. The
      result may share its memory.

    `max_pixels` limits H * W, and with it the length of a file (`most_bytes`); both are checked
    before anything is decoded. Raises ImageError.
    """
    max_pixels = whole("max_pixels", max_pixels, 1)
    if isinstance(image, (str, os.PathLike)):
        return _decode_file(Path(image), max_pixels)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _decode_stream(io.BytesIO(bytes(image)), "image (bytes)", max_pixels)
    if isinstance(image, Image.Image):
        return _from_pil(image, max_pixels)
    if isinstance(image, np.ndarray):
        return _from_array(image, max_pixels)
    raise ImageError(
        f"image is a {type(image).__module__}.{type(image).__qualname__}: give a path, the bytes "
        "of a file, a PIL image, or an (H, W, 3) uint8 RGB array"
    )


def most_bytes(max_pixels: int) -> int:
    """Give the most bytes of a file: 16-bit RGBA without compression, and room for metadata."""
    return 8 * max_pixels + 64 * 2**20


def _decode_file(path: Path, max_pixels: int) -> Pixels:
    try:
        if path.exists() and not path.is_file():  # opening a pipe may wait for ever
            kind = "a directory" if path.is_dir() else "a device or a pipe"
            raise ImageError(f"image {path} is {kind}: give one image file")
        with path.open("rb") as stream:
            return _decode_stream(stream, f"image {path}", max_pixels)
    except FileNotFoundError:
        raise ImageError(f"image {path} does not exist: check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or error  # str(error) has the path once more
        raise ImageError(f"image {path} cannot be read: {reason}") from None


def _decode_stream(stream: BinaryIO, name: str, max_pixels: int) -> Pixels:
    """Length and header first (what it is, how large), then the pixels."""
    length = stream.seek(0, io.SEEK_END)
    _check_length(name, length, max_pixels)
    stream.seek(0)
    head = stream.read(512)
    if not head:
        raise ImageError(f"{name} is empty (0 bytes): fetch or save it again")
    header = _read_header(stream, head, name)
    _check_size(name, header.height, header.width, max_pixels)
    stream.seek(0)
    data = stream.read(length)
    if header.format == "PNG":
        _check_png(data, name)
    try:
        # None, without an exception, is how OpenCV reports most of what it cannot decode.
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError(f"{name} cannot be decoded as {header.format}: {error.err}") from None
    if bgr is None:
        raise ImageError(
            f"{name} is truncated, corrupt or an unsupported kind of {header.format}: "
            "fetch or save it again"
        )
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _read_header(stream: BinaryIO, head: bytes, name: str) -> Image.Image:
    # Not Image.open: its own limit is a process-wide setting, which is the caller's to make.
    Image.init()
    for identifier in _FORMATS:
        if identifier not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[identifier]
        # Plugins compare the first 16 bytes, and fail on fewer.
        if accept is not None and accept(head[:16].ljust(16, b"\0")) is not True:
            continue
        stream.seek(0)
        try:
            return factory(stream, "")
        except Exception as error:  # Pillow's plugins raise whatever their parsing meets
            raise ImageError(
                f"{name} starts like a {identifier} file, but its header is truncated or corrupt "
                f"({error}): fetch or save it again"
            ) from None
    raise ImageError(f"{name} {_what_it_is(head)} ({_READABLE})")


def _what_it_is(head: bytes) -> str:
    start = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the image: run 'git lfs pull'"
    if head[4:12] == b"ftypavif":
        return (
            "is AVIF, which this build of Pillow does not read: install another, or save it as PNG"
        )
    if head[4:8] == b"ftyp":
        return "is a HEIC picture or a video: convert it to JPEG or PNG"
    if start.startswith((b"<!doctype html", b"<html")):
        return "is a web page: the download probably failed"
    if b"<svg" in start or start.startswith(b"%pdf"):
        return "is a vector drawing or PDF: export it as PNG"
    try:
        # The head may end inside a character: decode all but the last three bytes' worth.
        head[: max(1, len(head) - 3)].decode("utf-8")
    except UnicodeDecodeError:
        return "is not in an image format that can be read: save it as PNG or JPEG"
    return "is text, not an image: give an image file"


def _check_png(data: bytes, name: str) -> None:
    """Check the checksums of a PNG's chunks; libpng says what is wrong on stderr only."""
    try:
        Image.OPEN["PNG"][0](io.BytesIO(data), "").verify()
    except Exception as error:  # as in _read_header
        raise ImageError(
            f"{name} is truncated or corrupt ({error}): fetch or save it again"
        ) from None


def _check_size(name: str, height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height}): give a non-empty image")
    if height * width > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} = {height * width:,} pixels, over the limit of "
            f"{max_pixels:,}: scale it down or raise max_pixels"
        )


def _check_length(name: str, length: int, max_pixels: int) -> None:
    if length > most_bytes(max_pixels):
        raise ImageError(
            f"{name} has {length:,} bytes, over the limit of {most_bytes(max_pixels):,} for a file "
            f"of {max_pixels:,} pixels: save that one picture by itself, or raise max_pixels"
        )


def _from_pil(image: Image.Image, max_pixels: int) -> Pixels:
    name = f"image (PIL, mode {image.mode})"
    _check_size(name, image.height, image.width, max_pixels)
    file = getattr(image, "fp", None)  # of a file that is not decoded yet
    if file is not None and not file.closed:
        with contextlib.suppress(OSError, ValueError, AttributeError):  # may be of any kind
            at = file.tell()
            length = file.seek(0, io.SEEK_END)
            file.seek(at)
            _check_length(name, length, max_pixels)
    try:
        if image.mode.startswith("I;16"):
            return _to_rgb(np.asarray(image).astype(np.uint16))
        if image.mode in ("I", "F"):
            return _from_wide(np.asarray(image), name)
        if image.mode in ("La", "RGBa"):  # premultiplied alpha converts in two steps only
            image = image.convert(image.mode.upper())
        return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:  # decoding happens here at the latest
        raise ImageError(f"{name} cannot be read: {error}") from None


def _from_wide(values: NDArray[Any], name: str) -> Pixels:
    """Scale 32-bit integer or float samples, whose range the PIL mode does not say."""
    lowest, highest = float(values.min()), float(values.max())
    limit = 65535 if values.dtype.kind == "i" else 255
    if not (lowest >= 0 and highest <= limit) or not math.isfinite(highest):  # NaN fails, too
        raise ImageError(
            f"{name} has values from {lowest:g} to {highest:g}, not within 0..{limit}: "
            "scale it to 8 bits"
        )
    if values.dtype.kind == "i":
        return _to_rgb(values.astype(np.uint8 if highest <= 255 else np.uint16))
    return _to_rgb(np.rint(values * 255 if highest <= 1 else values).astype(np.uint8))


def _from_array(array: NDArray[Any], max_pixels: int) -> Pixels:
    shape = array.shape
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        hint = ".transpose(1, 2, 0)" if array.ndim == 3 and shape[0] in (1, 3, 4) else ""
        raise ImageError(
            f"image has shape {shape}: give (H, W, 3) RGB, or (H, W), (H, W, 1), (H, W, 4)"
            + (f"; image{hint} would fit" if hint else "")
        )
    _check_size(f"image (array {shape})", shape[0], shape[1], max_pixels)
    if array.dtype not in (np.uint8, np.uint16, np.bool_):
        raise ImageError(
            f"image has dtype {array.dtype}: give uint8 (0..255); for floats in 0..1 that is "
            "(image * 255).round().astype('uint8')"
        )
    return _to_rgb(array)


def _to_rgb(array: NDArray[Any]) -> Pixels:
    """(H, W) or (H, W, 1 | 3 | 4) of uint8, uint16 or bool to (H, W, 3) uint8."""
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype == np.uint16:
        # The upper byte: the same pixels that a 16-bit file gives through OpenCV.
        array = (array >> 8).astype(np.uint8)
    if array.ndim == 2 or array.shape[2] == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3])
