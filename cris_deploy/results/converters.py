"""Masks in the forms that others take: polygons, COCO's annotations, supervision, FiftyOne."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cris_deploy.errors import InputError

if TYPE_CHECKING:
    from cris_deploy.results.segmentation import Segmentation


def polygons(mask: NDArray[np.bool_]) -> list[NDArray[np.int32]]:
    """Give the outlines of a mask's parts, (n, 2) int32 x and y of pixel centres, largest first.

    Filled with `cv2.fillPoly` they are the mask, but for holes, which polygons do not have.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = [np.asarray(outline, np.int32)[:, 0] for outline in found]  # (n, 1, 2) -> (n, 2)
    return sorted(outlines, key=cv2.contourArea, reverse=True)


def to_coco(
    result: "Segmentation", image_id: int, annotation_id: int = 1, category_id: int = 1
) -> dict[str, Any]:
    """Give a result as an annotation of COCO's format, which pycocotools loads.

    `bbox` is x, y, width, height; an empty mask has zeros there. The expression is `caption`.
    """
    x0, y0, x1, y1 = result.box or (0, 0, 0, 0)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": result.rle(),
        "area": result.area,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": 0,
        "score": result.score,
        "caption": result.expression,
    }


def to_supervision(results: "Sequence[Segmentation]") -> Any:
    """Give results of one image as `supervision.Detections`.

    Boxes, masks and scores go where supervision has them, the expressions to
    `data["class_name"]`, where its annotators look for labels. Raises InputError if the package is
    not installed.
    """
    try:
        import supervision
    except ImportError as error:
        raise InputError(f"supervision is missing: pip install supervision ({error})") from None
    if not results:
        return supervision.Detections.empty()
    return supervision.Detections(
        xyxy=np.array([r.box or (0, 0, 0, 0) for r in results], np.float32),
        mask=np.array([r.mask for r in results], bool),
        confidence=np.array([r.score for r in results], np.float32),
        class_id=np.arange(len(results)),
        data={"class_name": np.array([r.expression for r in results], dtype=str)},
    )


def to_fiftyone(results: "Sequence[Segmentation]") -> Any:
    """Give results of one image as `fiftyone.Detections`: boxes relative, masks inside them.

    Empty masks have no box and are left out. Raises InputError if the package is not installed.
    """
    try:
        import fiftyone
    except ImportError as error:
        raise InputError(f"fiftyone is missing: pip install fiftyone ({error})") from None
    detections = []
    for result in results:
        if result.box is None:
            continue
        x0, y0, x1, y1 = result.box
        height, width = result.mask.shape
        detections.append(
            fiftyone.Detection(
                label=result.expression,
                bounding_box=[x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height],
                mask=result.mask[y0:y1, x0:x1].copy(),
                confidence=result.score,
            )
        )
    return fiftyone.Detections(detections=detections)
