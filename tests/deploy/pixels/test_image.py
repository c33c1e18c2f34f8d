"""Pictures of every kind decode as OpenCV decodes them, and the letterbox is the reference's."""

import contextlib
import io
import json
import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cris_deploy.errors import ImageError, InputError
from cris_deploy.pixels.image import (
    MEAN,
    STD,
    Letterbox,
    decode,
    letterbox,
    normalise,
    normalise_all,
)

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 3)


def save(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def opencv(data: bytes) -> np.ndarray:
    """The reference: cv2.imdecode, colour, then RGB."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def encode(picture: np.ndarray, extension: str, *parameters: int) -> bytes:
    return cv2.imencode(extension, picture, parameters)[1].tobytes()


def variants(picture: np.ndarray) -> dict[str, bytes]:
    rgb = Image.fromarray(picture)
    palette = rgb.convert("P")
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(picture[:, :, 0]))
    wide = picture.astype(np.uint16) * 257 + 13
    return {
        "grey.png": save(rgb.convert("L"), "PNG"),
        "grey.jpg": save(rgb.convert("L"), "JPEG"),
        "bilevel.png": save(rgb.convert("1"), "PNG"),
        "palette.png": save(palette, "PNG"),
        "palette-transparent.png": save(palette, "PNG", transparency=3),
        "grey-alpha.png": save(rgb.convert("LA"), "PNG"),
        "rgba.png": save(alpha, "PNG"),
        "rgba.webp": save(alpha, "WEBP", lossless=True),
        "16bit-grey.png": encode(wide[:, :, 0], ".png"),
        "16bit.png": encode(wide, ".png"),
        "16bit.tif": encode(wide, ".tiff"),
        "cmyk.jpg": save(rgb.convert("CMYK"), "JPEG"),
        "cmyk.tif": save(rgb.convert("CMYK"), "TIFF"),
        "progressive.jpg": save(rgb, "JPEG", progressive=True),
        "plain.bmp": save(rgb, "BMP"),
        "plain.ppm": save(rgb, "PPM"),
        "plain.gif": save(rgb, "GIF"),
        "plain.jp2": encode(picture, ".jp2"),
        "plain.avif": save(rgb, "AVIF"),
        "one-pixel.png": save(rgb.crop((0, 0, 1, 1)), "PNG"),
        "one-pixel.jpg": save(rgb.crop((0, 0, 1, 1)), "JPEG"),
    }


@pytest.mark.parametrize("name", variants(np.zeros((64, 64, 3), np.uint8)))
def test_files_give_opencvs_pixels(picture, tmp_path, name):
    data = variants(picture)[name]
    (tmp_path / name).write_bytes(data)
    expected = opencv(data)
    assert expected.shape == ((1, 1, 3) if "one-pixel" in name else picture.shape)
    for source in (tmp_path / name, str(tmp_path / name), data, bytearray(data), memoryview(data)):
        pixels = decode(source)
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, expected)


def test_lossless_files_give_what_was_saved(picture):
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(decode(save(Image.fromarray(picture), kind)), picture)
    wide = picture.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(encode(wide[:, :, ::-1], ".png")), picture)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_give_the_first_frame(picture, kind):
    first, second = Image.fromarray(picture), Image.fromarray(255 - picture)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = save(first, kind, save_all=True, append_images=[second], duration=100, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))  # frame 0
    np.testing.assert_array_equal(decode(data), expected)


# What must be done to the stored pixels to see them upright (EXIF 2.3, tag 0x0112).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(picture, orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    image = Image.fromarray(picture)
    stored = decode(save(image, kind, **options.get(kind, {})))
    pixels = decode(save(image, kind, exif=exif, **options.get(kind, {})))
    np.testing.assert_array_equal(pixels, UPRIGHT[orientation](stored))


# Bad input


def test_missing_directory_and_nul(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png does not exist"):
        decode(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is a directory"):
        decode(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        decode("a\0b.png")
    with pytest.raises(ImageError, match=r"cannot be read|does not exist"):
        decode("x" * 5000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello world", "is text"),
        ("größer, 左边".encode(), "is text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"<?xml version='1.0'?><svg>", "vector"),
        (b"%PDF-1.7\n\xff\xfe", "PDF"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "HEIC"),
        (bytes(range(128, 256)) * 4, "not in an image format"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"GIF89a", "GIF"),
        (b"BM", "BMP"),
        (b"II*\x00", "TIFF"),
        (b"RIFF\x08\x00\x00\x00WEBPVP8 ", "WEBP"),
    ],
)
def test_not_an_image(tmp_path, data, message):
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(ImageError, match=message):
        decode(tmp_path / "x.png")
    with pytest.raises(ImageError, match=message):
        decode(data)


@pytest.mark.parametrize(
    "name", ["progressive.jpg", "grey.jpg", "rgba.png", "plain.gif", "rgba.webp"]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_files_are_refused(picture, name, share):
    # Never a picture whose lower half is grey.
    data = variants(np.tile(picture, (3, 3, 1)))[name]
    with pytest.raises(ImageError, match=r"truncated|corrupt"):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_truncation_is_refused(picture, kind):
    data = save(Image.fromarray(picture), kind)
    for length in range(len(data) - 2):
        with pytest.raises(ImageError):
            decode(data[:length])


def test_damaged_png_is_refused_without_a_word_on_stderr(picture, capfd):
    data = bytearray(save(Image.fromarray(picture), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(ImageError, match="corrupt"):
        decode(bytes(data))
    assert capfd.readouterr().err == ""


def test_zeroed_tail_of_a_jpeg_is_refused(picture):
    data = save(Image.fromarray(np.tile(picture, (3, 3, 1))), "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        decode(data[: len(data) // 2] + bytes(len(data) // 2))


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; decoding it would take that much memory."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [10_001, 20_000, 2_000_000])
def test_too_many_pixels_are_refused_before_decoding(side, monkeypatch, recwarn):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"over the limit of 100,000,000.*max_pixels"):
        decode(bomb(side, side))
    assert not recwarn  # Pillow's own limit neither warns nor raises


def test_limit_is_settable_and_inclusive(picture):
    data = save(Image.fromarray(picture), "PNG")
    for source in (data, Image.fromarray(picture), picture):
        decode(source, max_pixels=2400)
        with pytest.raises(ImageError, match="60 x 40 = 2,400 pixels"):
            decode(source, max_pixels=2399)


def test_other_types_are_refused():
    for wrong in (None, 3, [1, 2], io.BytesIO(b"")):
        with pytest.raises(ImageError, match="give a path"):
            decode(wrong)


# PIL images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX",
                                  "CMYK", "YCbCr", "HSV", "LAB"])  # fmt: skip
def test_pil_modes(picture, mode):
    image = Image.fromarray(picture)
    if mode == "LAB":
        image = Image.merge("LAB", [Image.fromarray(picture[:, :, c].copy()) for c in range(3)])
    elif mode == "PA":
        image = image.convert("P").convert("PA")
    elif mode == "La":
        image = image.convert("LA").convert("La")
    elif mode == "RGBa":
        image = image.convert("RGBA").convert("RGBa")
    else:
        image = image.convert(mode)
    assert image.mode == mode
    pixels = decode(image)
    assert pixels.shape == picture.shape
    assert pixels.dtype == np.uint8
    if mode in ("RGB", "RGBA", "RGBX", "RGBa"):
        np.testing.assert_array_equal(pixels, picture)
    elif mode in ("CMYK", "YCbCr", "HSV"):  # these round in 8 bits, HSV most
        assert np.abs(pixels.astype(int) - picture).max() <= 12
    elif mode in ("L", "LA", "La"):
        np.testing.assert_array_equal(
            pixels[:, :, 1], np.asarray(Image.fromarray(picture).convert("L"))
        )


def test_pil_palette_with_transparency_keeps_its_colours(picture):
    data = save(Image.fromarray(picture).convert("P"), "PNG", transparency=3)
    np.testing.assert_array_equal(decode(Image.open(io.BytesIO(data))), opencv(data))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_pil_16_bit_is_scaled_not_clipped(mode):
    values = np.linspace(0, 65535, 2400).reshape(40, 60).astype(np.uint16)
    order = ">u2" if mode.endswith("B") else "<u2"
    image = Image.frombytes(mode, (60, 40), values.astype(order).tobytes())
    np.testing.assert_array_equal(decode(image)[:, :, 0], values >> 8)


def test_pil_16_bit_equals_its_file():
    values = np.linspace(0, 65535, 2400).reshape(40, 60).astype(np.uint16)
    data = encode(values, ".png")
    image = Image.open(io.BytesIO(data))
    assert image.mode == "I;16"
    np.testing.assert_array_equal(decode(image), decode(data))


def test_pil_wide_integers_and_floats():
    ramp = np.linspace(0, 255, 2400).reshape(40, 60)
    eight = np.rint(ramp).astype(np.uint8)
    for values in (
        eight.astype(np.int32),
        ramp.astype(np.float32),
        (ramp / 255).astype(np.float32),
    ):
        np.testing.assert_array_equal(decode(Image.fromarray(values))[:, :, 2], eight)
    sixteen = eight.astype(np.int32) * 257
    np.testing.assert_array_equal(decode(Image.fromarray(sixteen))[:, :, 0], eight)


@pytest.mark.parametrize("value", [-1, 70_000])
def test_pil_integers_out_of_range(value):
    with pytest.raises(ImageError, match="scale it to 8 bits"):
        decode(Image.fromarray(np.full((4, 4), value, np.int32)))


@pytest.mark.parametrize("value", [-0.5, 256.0, np.nan, np.inf])
def test_pil_floats_out_of_range(value):
    values = np.zeros((4, 4), np.float32)
    values[1, 1] = value
    with pytest.raises(ImageError, match="scale it to 8 bits"):
        decode(Image.fromarray(values))


def test_pil_image_of_a_truncated_file(picture):
    data = save(Image.fromarray(picture), "PNG")
    with pytest.raises(ImageError, match="cannot be read"):
        decode(Image.open(io.BytesIO(data[: len(data) // 2])))


# Arrays


def test_arrays(picture):
    np.testing.assert_array_equal(decode(picture), picture)
    np.testing.assert_array_equal(decode(np.dstack([picture, picture[:, :, 0]])), picture)
    np.testing.assert_array_equal(decode(picture.astype(np.uint16) * 257), picture)
    grey = np.repeat(picture[:, :, :1], 3, axis=2)
    np.testing.assert_array_equal(decode(picture[:, :, 0]), grey)
    np.testing.assert_array_equal(decode(picture[:, :, :1]), grey)
    np.testing.assert_array_equal(decode(picture[:, :, 0] > 99), np.where(grey > 99, 255, 0))
    flipped = decode(picture[:, ::-1, ::-1])
    assert flipped.flags.c_contiguous
    np.testing.assert_array_equal(flipped, picture[:, ::-1, ::-1])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "dtype float32.*uint8"),
        (np.zeros((4, 4, 3), np.int64), "dtype int64"),
        (np.zeros((3, 40, 60), np.uint8), r"image\.transpose\(1, 2, 0\)"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((4,), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.array(["a"]), "shape"),
    ],
)
def test_bad_arrays(array, message):
    with pytest.raises(ImageError, match=message):
        decode(array)


# Letterbox and normalisation


def test_golden_letterbox():
    # A crop of a photograph and what the reference implementation makes of it, every 4th pixel.
    with np.load(DATA / "letterbox.npz") as data:
        image, cases = data["image"], json.loads(str(data["cases"]))
        for index, (height, width, size) in enumerate(cases):
            pixels = normalise(letterbox(image[:height, :width], size))
            # Same library, same order of operations: equal to the last bit of float32.
            np.testing.assert_array_equal(pixels[:, ::4, ::4], data[f"pixels_{index}"])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 31), (300, 451), (2, 4000), (4000, 2)])
def test_geometry(height, width):
    box = Letterbox(height, width, 416)
    corners = np.array([[0, 0, 1], [width, height, 1]]) @ box.matrix.T
    scale = 416 / max(height, width)
    # The image's corners lie symmetrically in the square, the long side filling it.
    np.testing.assert_allclose(corners.sum(axis=0), [416, 416], atol=1e-3)
    np.testing.assert_allclose(corners[1] - corners[0], [width * scale, height * scale], atol=1e-3)
    identity = np.vstack([box.matrix, [0, 0, 1]]) @ np.vstack([box.inverse, [0, 0, 1]])
    # The points are float32: 416 * 2^-24 * the largest scale.
    np.testing.assert_allclose(identity, np.eye(3), atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (3, 40_000), (1, 1), (64, 64)])
def test_extreme_shapes(shape):
    square = letterbox(np.full((*shape, 3), 250, np.uint8), 64)
    assert square.shape == (64, 64, 3)
    padding = np.rint(255 * np.array(MEAN))  # OpenCV rounds the border value to uint8
    if shape[0] == shape[1]:
        assert square[0, 0].min() > 240  # the image begins at the corner
    else:
        corners = square[[0, 0, -1, -1], [0, -1, 0, -1]]
        np.testing.assert_array_equal(corners, np.tile(padding, (4, 1)))


def test_normalise_is_the_formula(picture):
    expected = (picture.astype(np.float64) / 255 - MEAN) / STD
    pixels = normalise(picture)
    assert pixels.shape == (3, 40, 60)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    # Values up to 2.7 in float32, three roundings.
    np.testing.assert_allclose(pixels, expected.transpose(2, 0, 1), atol=1e-6)


def test_normalised_together_or_one_by_one(picture):
    pictures = [picture, picture[::-1], 255 - picture]
    together = normalise_all(pictures)
    assert np.array_equal(together, np.stack([normalise(each) for each in pictures]))
    out = np.empty((3, 40, 60), np.float32)
    assert normalise(picture, out) is out
    assert np.array_equal(out, together[0])


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1)])
def test_letterbox_without_area(sizes):
    with pytest.raises(InputError, match="at least 1"):
        Letterbox(*sizes)


def test_decoding_in_many_threads(picture):
    data = save(Image.fromarray(picture), "PNG")
    results = []
    threads = [threading.Thread(target=lambda: results.append(decode(data))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all((pixels == picture).all() for pixels in results)


def sparse(path, content: bytes) -> None:
    """A file that claims 100 GB and takes a few."""
    path.write_bytes(content)
    os.truncate(path, 100 << 30)


@pytest.mark.parametrize("extension", [".jpg", ".png", ".bmp"])
def test_a_file_without_end_is_not_read(tmp_path, extension):
    path = tmp_path / f"x{extension}"
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    sparse(path, cv2.imencode(extension, image)[1].tobytes())
    message = r"has 107,374,182,400 bytes, over the limit of 867,108,864 .*raise max_pixels"
    with pytest.raises(ImageError, match=message):
        decode(path)
    with Image.open(path) as picture, pytest.raises(ImageError, match=message):
        decode(picture)


def test_the_limit_of_a_file_follows_the_limit_of_pixels(tmp_path):
    data = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    path = tmp_path / "x.png"
    path.write_bytes(data)
    for pixels, fits in ((10**6, True), (10**6 - 1, False)):
        os.truncate(path, 8 * 10**6 + 64 * 2**20)
        with (
            contextlib.nullcontext() if fits else pytest.raises(ImageError, match="over the limit")
        ):
            decode(path, pixels)


def test_pipes_and_devices_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ImageError, match="is a device or a pipe: give one image file"):
            decode(path)
