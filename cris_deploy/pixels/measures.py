"""What is read off a mask at image size: area, box, run lengths, and what two of them share."""

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cris_deploy.errors import InputError
from cris_deploy.pixels import without_kernels
from cris_deploy.pixels.kernels import load_kernels

Mask: TypeAlias = NDArray[np.bool_]
Box: TypeAlias = tuple[int, int, int, int]


class Overlap(NamedTuple):
    """Pixels that two masks share, and that either has."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union, 0 to 1; 1 if both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


def overlap(first: Mask, second: Mask) -> Overlap:
    """Compare two masks (H, W) bool of one size."""
    return Overlap(int(np.count_nonzero(first & second)), int(np.count_nonzero(first | second)))


def area(mask: Mask) -> int:
    """Count the pixels of a mask (H, W) bool."""
    return int(np.count_nonzero(_checked(mask)))


def box(mask: Mask) -> Box | None:
    """Give the smallest box (x0, y0, x1, y1), x1 and y1 exclusive, of a mask (H, W) bool.

    None for an empty mask. Raises InputError.
    """
    rows = np.flatnonzero(_checked(mask).any(axis=1))
    if not rows.size:
        return None
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[y0:y1].any(axis=0))
    return int(columns[0]), y0, int(columns[-1]) + 1, y1


def rle(mask: Mask) -> str:
    """Encode a mask (H, W) bool as COCO's compressed run lengths (the `counts` string).

    Raises InputError, and KernelError if the extension is there but cannot be loaded.
    """
    kernels = load_kernels()
    if kernels is not None:
        return str(kernels.rle(np.ascontiguousarray(_checked(mask))))
    return without_kernels.rle(_checked(mask))


def _checked(mask: Mask) -> Mask:
    if (
        not isinstance(mask, np.ndarray)
        or mask.dtype != np.bool_
        or mask.ndim != 2
        or not mask.size
    ):
        kind = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise InputError(f"mask is {kind}: give a bool array (height, width), neither 0")
    return mask
