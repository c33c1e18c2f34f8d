"""Masks in others' forms, read back by the real packages."""

import contextlib
import io

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from cris_deploy.pixels import mask as masks
from cris_deploy.results import converters
from cris_deploy.results.segmentation import Segmentation


def segmentation(mask: np.ndarray, expression: str = "x", logit: float = 2.0) -> Segmentation:
    return Segmentation(
        mask=mask,
        logits=np.full((4, 4), logit, np.float32),
        expression=expression,
        truncated=False,
        area=masks.area(mask),
        box=masks.box(mask),
    )


@pytest.fixture
def blobs() -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[5:20, 10:30] = True
    mask[30:33, 50:60] = True
    mask[39, 0] = True  # one pixel, in a corner
    return mask


def test_polygons_fill_to_the_mask(blobs: np.ndarray) -> None:
    found = converters.polygons(blobs)
    assert [outline.shape[1] for outline in found] == [2, 2, 2]
    filled = np.zeros(blobs.shape, np.uint8)
    cv2.fillPoly(filled, found, 1)
    np.testing.assert_array_equal(filled.astype(bool), blobs)
    areas = [cv2.contourArea(outline) for outline in found]
    assert areas == sorted(areas, reverse=True)
    assert converters.polygons(np.zeros((5, 5), bool)) == []


def test_coco_s_own_reader_takes_annotations(blobs: np.ndarray) -> None:
    results = [segmentation(blobs, "the blobs"), segmentation(np.zeros_like(blobs), "nothing")]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": 7, "height": 40, "width": 60}],
        "categories": [{"id": 1, "name": "referred"}],
        "annotations": [converters.to_coco(r, 7, n) for n, r in enumerate(results, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    full, empty = (coco.loadAnns([number])[0] for number in (1, 2))
    np.testing.assert_array_equal(coco.annToMask(full).astype(bool), blobs)
    assert full["bbox"] == [0, 5, 60, 35]
    assert coco_masks.area(full["segmentation"]) == full["area"]
    assert full["caption"] == "the blobs"
    assert (empty["bbox"], empty["area"]) == ([0, 0, 0, 0], 0)


def test_supervision(blobs: np.ndarray) -> None:
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    results = [segmentation(blobs, "a"), segmentation(~blobs, "b", -1.0)]
    found = converters.to_supervision(results)
    assert len(found) == 2
    np.testing.assert_array_equal(found.mask, [blobs, ~blobs])
    np.testing.assert_array_equal(found.xyxy[0], [0, 5, 60, 40])
    assert found.confidence[0] == pytest.approx(results[0].score)
    scene = np.zeros((40, 60, 3), np.uint8)
    drawn = supervision.MaskAnnotator().annotate(scene.copy(), found)
    assert (drawn != scene).any()
    assert found["class_name"].tolist() == ["a", "b"]
    assert len(converters.to_supervision([])) == 0


def test_fiftyone(blobs: np.ndarray) -> None:
    pytest.importorskip("fiftyone", reason="fiftyone is not installed (it asks for OpenCV 4)")
    results = [segmentation(blobs, "a"), segmentation(np.zeros_like(blobs), "none")]
    (found,) = converters.to_fiftyone(results).detections
    assert found.label == "a"
    assert found.bounding_box == pytest.approx([0, 5 / 40, 1, 35 / 40])
    np.testing.assert_array_equal(found.mask, blobs[5:40])
    assert found.confidence == pytest.approx(results[0].score)
