"""The letterbox is the reference's, and so is what the network sees of it."""

import json
from pathlib import Path

import numpy as np
import pytest

from cris_deploy.errors import InputError
from cris_deploy.pixels.image import (
    MEAN,
    STD,
    Letterbox,
    letterbox,
    normalise,
    normalise_all,
)

DATA = Path(__file__).parents[2] / "data"


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
