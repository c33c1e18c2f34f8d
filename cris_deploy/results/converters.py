"""Results as supervision and FiftyOne have them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cris_deploy.errors import InputError
from cris_deploy.results.segmentation import Segmentation


def to_supervision(results: Sequence[Segmentation]) -> Any:
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


def to_fiftyone(results: Sequence[Segmentation]) -> Any:
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
