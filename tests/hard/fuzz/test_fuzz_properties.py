"""What holds of every picture, array and manifest, looked for by hypothesis."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cris_deploy.bundle.arrays import read_array, read_arrays
from cris_deploy.bundle.manifest import Manifest
from cris_deploy.errors import BundleError, CrisError
from cris_deploy.pixels.image import MEAN, Letterbox, decode, letterbox
from cris_train.data.segmentation import decode_segmentation

pictures = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)), fill=st.nothing()
)
numbers = arrays.arrays(
    st.sampled_from([np.dtype(kind) for kind in ("f4", "f2", "i8", "u1", "?")]),
    arrays.array_shapes(min_dims=0, max_dims=4, max_side=5),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=20,
)


@given(pictures)
@settings(deadline=None)
def test_what_is_saved_without_loss_is_read_back(pixels: np.ndarray) -> None:
    for extension in (".png", ".bmp", ".ppm"):
        done, data = cv2.imencode(extension, pixels[:, :, ::-1])
        assert done
        np.testing.assert_array_equal(decode(data.tobytes()), pixels)


@given(pictures, st.integers(1, 64))
@settings(deadline=None)
def test_a_letterbox_holds_the_picture_and_the_mean(pixels: np.ndarray, size: int) -> None:
    square = letterbox(pixels, size)
    assert square.shape == (size, size, 3)
    height, width = pixels.shape[:2]
    if height == width == size:
        np.testing.assert_array_equal(square, pixels)
    scale = size / max(height, width)
    empty = (size - min(height, width) * scale) / 2
    # Bicubic reaches two pixels of the picture beyond its edge.
    rows = int(empty - 2 * max(1.0, scale)) - 1
    if rows > 0:
        border = square[:rows] if width > height else square[:, :rows]
        assert np.abs(border - 255 * np.array(MEAN)).max() <= 1


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 2000))
def test_there_and_back_is_where_it_was(height: int, width: int, size: int) -> None:
    box = Letterbox(height, width, size)
    there = np.vstack([box.matrix, [0, 0, 1]])
    back = np.vstack([box.inverse, [0, 0, 1]])
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1]], np.float64).T
    # The square's corners are float32: some units in their last place, back in the image's scale.
    tolerance = 8 * np.finfo(np.float32).eps * max(height, width)
    np.testing.assert_allclose((back @ there @ corners)[:2], corners[:2], atol=tolerance)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("properties")


@given(numbers, st.booleans())
@settings(deadline=None)
def test_arrays_are_read_back(folder: Path, array: np.ndarray, fortran: bool) -> None:
    array = np.asfortranarray(array) if fortran else array
    np.save(folder / "x.npy", array)
    np.savez(folder / "x.npz", a=array)
    for found in (
        read_array(folder / "x.npy", array.shape),
        read_arrays(folder / "x.npz", {"a": array.shape})["a"],
    ):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        found[...] = 0  # it is the caller's own
    with pytest.raises(ValueError, match="shape"):
        read_array(folder / "x.npy", (*array.shape, 1))


@given(values)
@settings(deadline=None)
def test_a_manifest_of_anything_is_refused(value: Any) -> None:
    import msgspec

    text = msgspec.json.encode(value)
    with pytest.raises(BundleError, match=r"^m: |^m is|^m has"):
        Manifest.from_json(text, "m")


@given(values | st.fixed_dictionaries({"size": values, "counts": values}))
@settings(deadline=None)
def test_a_segmentation_of_anything(value: Any) -> None:
    try:
        mask = decode_segmentation(value, 8, 10, "x")
    except CrisError:
        return
    assert mask.shape == (8, 10)
