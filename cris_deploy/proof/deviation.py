"""How far a tensor is from its reference."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Deviation:
    """Relative and largest absolute error; both infinite where NaN or infinity came out.

    `relative` is the root mean square of the difference over that of the reference.
    """

    relative: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(
        cls, found: NDArray[Any], reference: NDArray[Any], scale: NDArray[Any] | None = None
    ) -> "Deviation":
        """Compare two tensors of one shape, relative to `scale` or else to `reference`."""
        difference = found.astype(np.float64) - reference.astype(np.float64)
        if not np.isfinite(difference).all():
            return cls(math.inf, math.inf)
        error = _rms(difference)
        size = _rms((reference if scale is None else scale).astype(np.float64))
        # Against zeros alone any error is infinitely large, and yet a number.
        relative = error / size if size else error
        return cls(relative, float(np.abs(difference).max(initial=0.0)))

    @classmethod
    def worst(cls, deviations: Iterable["Deviation"]) -> "Deviation":
        """Give the largest of each error; zeros if there are none."""
        found = [cls(), *deviations]
        return cls(max(d.relative for d in found), max(d.largest for d in found))


def finite(error: float) -> float | None:
    """Give an error as reports hold it: None for what NaN and infinity give."""
    return error if math.isfinite(error) else None


def _rms(values: NDArray[np.float64]) -> float:
    return math.sqrt(float(np.mean(np.square(values))))
