"""Files of every kind decode as OpenCV decodes them; of others it is said what they are."""

import contextlib
import io
import os
import threading

import cv2
import numpy as np
import pytest
from PIL import Image

from cris_deploy.errors import ImageError
from cris_deploy.pixels.decoding import decode
from tests.helpers.encoded import encode, opencv, save


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


def test_avif_where_pillow_was_built_without_it(picture, monkeypatch):
    data = variants(picture)["plain.avif"]
    monkeypatch.delitem(Image.OPEN, "AVIF")
    with pytest.raises(ImageError, match="is AVIF, which this build of Pillow does not read"):
        decode(data)


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
    with pytest.raises(ImageError, match=r"cannot be read|does not exist") as raised:
        decode("x" * 5000)
    assert str(raised.value).count("xxxxx") * 5 == 5000  # the path once, not twice


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
