"""PIL images of every mode and arrays of every layout become the same pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from cris_deploy.errors import ImageError
from cris_deploy.pixels.decoding import decode
from tests.helpers.encoded import encode, opencv, save


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
