"""What the compiled extension does, by OpenCV and NumPy: where it has not been built."""

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from cris_deploy.pixels.image import Letterbox


def probabilities(
    logits: NDArray[np.floating], frame: Letterbox, *, direct: bool
) -> NDArray[np.float32]:
    """Bring one map of logits (h, w), float32 or float16, to probabilities (H, W) of the image.

    `direct`: by one bicubic step in place of the reference's two.
    """
    with np.errstate(over="ignore"):  # exp(-x) of a very negative logit is inf, and 1 / inf is 0
        values = 1 / (1 + np.exp(-logits.astype(np.float32)))
    values = np.nan_to_num(np.asarray(values, dtype=np.float32), nan=0.0)
    size = frame.size
    matrix = frame.matrix
    x = matrix[0, 0] * np.arange(frame.width) + matrix[0, 2]
    y = matrix[1, 1] * np.arange(frame.height) + matrix[1, 2]
    if direct:
        return _gather(_gather(values, x, size, 1), y, size, 0)
    square = _gather(_gather(values, np.arange(size), size, 1), np.arange(size), size, 0)
    warped = cv2.warpAffine(
        square, frame.inverse, (frame.width, frame.height), flags=cv2.INTER_CUBIC, borderValue=0
    )
    return np.asarray(warped, dtype=np.float32)


def rle(mask: NDArray[np.bool_]) -> str:
    """Encode a mask (H, W) as COCO's compressed run lengths."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = [*([0] if flat[0] else []), *changes.tolist(), flat.size]
    counts = [ends[0], *(after - before for before, after in pairwise(ends))]
    text = bytearray()
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            digit = value & 0x1F
            value >>= 5
            # Five bits suffice when what is left repeats the sign bit of the digit.
            more = value != (-1 if digit & 0x10 else 0)
            text.append(48 + digit + (0x20 if more else 0))
    return text.decode("ascii")


def _gather(
    values: NDArray[np.floating], at: NDArray[np.generic], size: int, axis: int
) -> NDArray[np.float32]:
    # Bicubic with corners aligned along one axis, at positions `at` of the square: OpenCV's own
    # resize aligns the pixels' outer edges instead.
    count = values.shape[axis]
    position = np.clip(at * ((count - 1) / max(size - 1, 1)), 0, count - 1)
    cell = np.floor(position).astype(np.intp)
    t = position - cell
    a, u = -0.75, 1 - t
    weights = (
        a * t * u * u,
        ((a + 2) * t - (a + 3)) * t * t + 1,
        ((a + 2) * u - (a + 3)) * u * u + 1,
        a * u * t * t,
    )
    shape = (1, -1) if axis == 1 else (-1, 1)
    terms = (
        np.take(values, np.clip(cell - 1 + k, 0, count - 1), axis=axis)
        * weight.astype(np.float32).reshape(shape)
        for k, weight in enumerate(weights)
    )
    return np.asarray(sum(terms), dtype=np.float32)
