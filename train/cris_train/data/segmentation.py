"""COCO's ways to write a mask, checked before pycocotools sees them.

Its C code makes room for what a mask claims and does not look whether it was given any: sizes of
10^5 x 10^5 and corners far outside end the process, and runs that do not fill the picture leave
whatever was in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from cris_deploy.errors import DataError
from cris_deploy.pixels.image import MAX_PIXELS

MOST_OUTLINE: Final = 2**22
"""Pixels that a polygon's outline goes over; pycocotools keeps 60 bytes for each."""


def decode_segmentation(
    segmentation: Any, height: int, width: int, name: str
) -> npt.NDArray[np.bool_]:
    """COCO polygons, run lengths, or compressed run lengths to a mask (height, width) bool.

    Raises:
        DataError: if it is neither, or of another size.
    """
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise DataError(f"{name}: picture is {width}x{height}: give 1 to {MAX_PIXELS:,} pixels")
    try:
        if isinstance(segmentation, Sequence) and not isinstance(segmentation, (str, bytes)):
            for polygon in segmentation:
                _check_polygon(polygon, max(height, width))
            rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        else:
            rle = _checked_runs(segmentation, height, width, name)
        # (W, H) in memory, because run lengths go by column; OpenCV turns it faster than NumPy.
        mask = cv2.transpose(coco_mask.decode(rle).T).view(np.bool_)
    except DataError:
        raise
    except Exception as error:  # pycocotools raises bare Exception
        raise DataError(f"{name}: segmentation is not polygons or run lengths: {error}") from error
    return np.asarray(mask)


def _check_polygon(polygon: Any, side: int) -> None:
    """ValueError if it is no list of at least three corners x, y in the picture or near to it."""
    if not isinstance(polygon, Sequence) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("a polygon is x, y of three or more corners")
    if not all(_is_number(value) and -side <= value <= 2 * side for value in polygon):
        raise ValueError(f"a corner is no number, or far outside of a side of {side}")
    corners = np.asarray(polygon, np.float64).reshape(-1, 2)
    if np.abs(np.diff(corners, axis=0, append=corners[:1])).sum() > MOST_OUTLINE:
        raise ValueError(f"a polygon's outline is longer than {MOST_OUTLINE:,} pixels")


def _checked_runs(rle: Any, height: int, width: int, name: str) -> Any:
    """Run lengths that fill the picture, compressed or not, in the form that is decoded."""
    size, counts = rle["size"], rle["counts"]
    if not (isinstance(size, Sequence) and len(size) == 2 and all(map(_is_whole, size))):
        raise ValueError("size is not [height, width]")
    if list(size) != [height, width]:
        raise DataError(
            f"{name}: mask is {size[1]}x{size[0]}, picture is {width}x{height}: "
            "do they belong together?"
        )
    if isinstance(counts, list):
        runs = counts
    else:
        text = counts.encode("ascii") if isinstance(counts, str) else counts
        runs = _uncompressed(text)
        rle = {"size": size, "counts": text}
    if not all(_is_whole(run) and run >= 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"the runs do not fill the picture's {height * width:,} pixels")
    return coco_mask.frPyObjects(rle, height, width) if isinstance(counts, list) else rle


def _uncompressed(text: bytes) -> list[int]:
    """The runs: groups of five bits, the lowest first; from the fourth run on, the difference."""
    runs: list[int] = []
    value = shift = 0
    for byte in text:
        code = byte - 48
        if not 0 <= code < 64 or shift > 30:
            raise ValueError("a character that compressed run lengths do not have")
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:  # negative
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the last run is cut off")
    return runs


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
