"""What a segmentation tells about its mask, and how it is drawn."""

import dataclasses
import math

import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.errors import InputError
from cris_deploy.results.overlay import PALETTE, add_legend, colour, draw
from cris_deploy.results.segmentation import Segmentation

coco = pytest.importorskip("pycocotools.mask")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def segmentation(mask: np.ndarray, logit: float = 0.0) -> Segmentation:
    logits = np.full((4, 4), -9, np.float32)
    logits[1, 2] = logit
    return Segmentation(mask, logits, "a cat", False, int(mask.sum()), None, 0.35)


def test_from_the_engine(tiny_bundle):
    image = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    with Engine(tiny_bundle, threads=1) as engine:
        result = engine.segment(image, "a cat")
    rows, columns = np.nonzero(result.mask)
    assert result.area == len(rows)
    assert 0 < result.area < result.mask.size  # or this test would prove little
    assert result.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    probabilities = 1 / (1 + np.exp(-result.logits.astype(np.float64)))
    assert result.score == pytest.approx(probabilities.max(), rel=1e-6)
    np.testing.assert_array_equal(coco.decode(result.rle()), result.mask)
    assert result.overlay(image).shape == image.shape
    assert "'a cat', 53 x 37" in repr(result)


def test_run_lengths_are_cocos():
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (1, 9), (9, 1), (37, 53)]:
        for share in (0.0, 0.3, 1.0):
            mask = rng.random(shape) < share
            expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            rle = segmentation(mask).rle()
            assert rle == {"size": list(shape), "counts": expected["counts"].decode()}


@pytest.mark.parametrize("logit", [-800.0, -3.0, 0.0, 3.0, 800.0])
def test_score(logit):
    expected = 1 / (1 + math.exp(-max(logit, -9.0)))  # the other logits are -9
    assert segmentation(np.zeros((2, 2), bool), logit).score == pytest.approx(expected)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        segmentation(np.zeros((2, 2), bool)).area = 3


def disc(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(height, width) / 3) ** 2


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (128, 128, 128), *PALETTE])
@pytest.mark.parametrize("index", range(len(PALETTE)))
def test_contour_is_visible_on_any_background(background, index):
    image = np.full((120, 160, 3), background, np.uint8)
    mask = disc(120, 160)
    result = draw(image, [mask], [colour(index)])
    assert (image == background).all()  # the given picture is not touched
    np.testing.assert_array_equal(result[:20, :20], image[:20, :20])  # nor what is far away
    difference = np.abs(result.astype(int) - image).max(axis=2)
    for row in range(45, 76):  # across the left edge: dark, light or colour differs strongly
        edge = int(np.flatnonzero(mask[row])[0])
        assert difference[row, edge - 3 : edge + 4].max() > 100


def test_tint_mixes_and_stays_inside():
    image = np.full((300, 300, 3), 100, np.uint8)
    result = draw(image, [disc(300, 300)], [(200, 0, 100)])
    np.testing.assert_array_equal(result[150, 150], np.rint([125, 75, 100]))
    np.testing.assert_array_equal(result[5, 5], [100, 100, 100])


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2)])
@pytest.mark.parametrize("full", [True, False])
def test_tiny_full_and_empty_masks(shape, full):
    image = np.zeros((*shape, 3), np.uint8)
    result = draw(image, [np.full(shape, full)], [colour(0)])
    assert result.shape == image.shape
    assert result.any() == full


def test_outline_reaches_the_border_and_no_farther_than_it_must():
    image = np.full((90, 120, 3), 100, np.uint8)
    mask = np.zeros((90, 120), bool)
    mask[:40, 60:] = True  # at the top and at the right
    result = draw(image, [mask], [(230, 60, 20)])
    for edge in (result[20, 58:62], result[38:42, 90], result[:2, 90], result[20, -2:]):
        assert (np.abs(edge.astype(int) - (230, 60, 20)).max(axis=1) < 60).any()
    assert (result[50:] == 100).all()
    assert (result[:, :50] == 100).all()


def test_mask_of_another_image():
    result = segmentation(np.ones((4, 6), bool))
    with pytest.raises(InputError, match=r"image is 4 x 6, the mask 6 x 4"):
        result.overlay(np.zeros((6, 4, 3), np.uint8))


def test_legend():
    image = np.full((50, 400, 3), 77, np.uint8)
    texts = ["a cat", "左边的人", "x" * 5000, "line\nbreak", ""]
    result = add_legend(image, [(text, colour(i)) for i, text in enumerate(texts)])
    np.testing.assert_array_equal(result[:50], image)
    assert result.shape[1] == 400
    for index in range(len(texts)):
        assert (result[50:] == colour(index)).all(axis=2).sum() > 100  # the swatch
    assert not (result[50:, -8:] > 200).any()  # the long text was cut before the border
    assert (result[50:] > 200).any()
    assert add_legend(image[:, :10], [("a", colour(0))]).shape[1] == 320
