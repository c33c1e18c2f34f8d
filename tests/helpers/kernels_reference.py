"""The mask step in float64, written plainly, and logits to try it on."""

import numpy as np
from numpy.typing import NDArray

from cris_deploy.pixels.image import Letterbox

# How far from the threshold a pixel's reference probability must be before the masks must agree
# there: float32 rounds the step's 25 products to about 4e-7, this leaves room for the sigmoid.
UNDECIDED = 1e-5


def probabilities(
    logits: NDArray[np.floating], height: int, width: int, size: int, direct: bool = False
) -> NDArray[np.float64]:
    """(h, w) logits -> (height, width) float64. NaN counts as probability 0."""
    with np.errstate(over="ignore"):
        values = 1 / (1 + np.exp(-logits.astype(np.float64)))
    values = np.nan_to_num(values, nan=0.0)
    matrix = Letterbox(height, width, size).matrix
    down = _axis(values.shape[0], height, size, matrix[1, 1], matrix[1, 2], direct)
    across = _axis(values.shape[1], width, size, matrix[0, 0], matrix[0, 2], direct)
    return down @ values @ across.T


def random_logits(seed: int, *shape: int) -> NDArray[np.float32]:
    """Independent values: the worst case, every neighbourhood crosses the threshold."""
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def smooth_logits(seed: int, *shape: int) -> NDArray[np.float32]:
    """A few blobs, as a network gives them."""
    grid = np.random.default_rng(seed)
    y, x = np.mgrid[0 : shape[-2], 0 : shape[-1]] / max(shape)
    maps = np.full(shape, -6.0)
    for index in np.ndindex(*shape[:-2]):
        for _ in range(3):
            cy, cx, radius = grid.uniform(0.1, 0.9, 3)
            distance = ((y - cy) ** 2 + (x - cx) ** 2) / (0.05 + radius / 5) ** 2
            maps[index] += 12 * np.exp(-distance)
    return maps.astype(np.float32)


def disagreements(
    mask: NDArray[np.bool_], reference: NDArray[np.floating], threshold: float
) -> int:
    """Pixels that differ although the reference is sure of them."""
    differs = mask != (reference > np.float32(threshold))
    return int((differs & (np.abs(reference - np.float32(threshold)) > UNDECIDED)).sum())


def _axis(
    count: int, length: int, size: int, scale: float, offset: float, direct: bool
) -> NDArray[np.float64]:
    """(length, count) matrix of one axis: warp times resize, or the single bicubic of `direct`."""
    at = scale * np.arange(length) + offset
    ratio = (count - 1) / max(size - 1, 1)
    if direct:
        return _cubic(np.clip(at * ratio, 0, count - 1), count, repeat=True)
    resize = _cubic(np.arange(size) * ratio, count, repeat=True)  # (size, count)
    return _cubic(at, size, repeat=False) @ resize


def _cubic(at: NDArray[np.float64], count: int, repeat: bool) -> NDArray[np.float64]:
    """(len(at), count): cubic convolution, a = -0.75; beyond the edge its sample repeats, or 0."""
    matrix = np.zeros((len(at), count))
    cell = np.floor(at).astype(int)
    for k in range(-1, 3):
        distance = np.abs(at - (cell + k))
        near = 1.25 * distance**3 - 2.25 * distance**2 + 1
        far = -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weight = np.where(distance <= 1, near, far)
        index = cell + k
        if repeat:
            np.add.at(matrix, (np.arange(len(at)), np.clip(index, 0, count - 1)), weight)
        else:
            inside = (index >= 0) & (index < count)
            np.add.at(matrix, (np.flatnonzero(inside), index[inside]), weight[inside])
    return matrix
