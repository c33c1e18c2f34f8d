"""What a mask is worth: mean IoU, overall IoU, precision at IoU thresholds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cris_deploy.pixels.mask import overlap

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)
PRECISION_NAMES = tuple(f"Pr@{round(at * 100)}" for at in PRECISION_AT)


@dataclass
class MaskMetrics:
    """Gathers pairs of masks, one expression at a time.

    The paper's "IoU" is the mean over expressions (`mean_iou`); other papers print total
    intersection over total union (`overall_iou`). Both empty counts as IoU 1.
    """

    ious: list[float] = field(default_factory=list)
    intersection: int = 0
    union: int = 0

    def add(self, mask: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
        """Count one pair of (H, W) bool masks; returns its IoU, 0 to 1."""
        common = overlap(mask, truth)
        self.intersection += common.intersection
        self.union += common.union
        self.ious.append(common.iou)
        return common.iou

    def merge(self, others: Iterable[MaskMetrics]) -> MaskMetrics:
        """These pairs and those of others together, such as of other processes; all stay."""
        parts = [self, *others]
        return MaskMetrics(
            [iou for part in parts for iou in part.ious],
            sum(part.intersection for part in parts),
            sum(part.union for part in parts),
        )

    @property
    def mean_iou(self) -> float:
        """mIoU, 0 to 1; NaN before the first pair."""
        return float(np.mean(self.ious)) if self.ious else float("nan")

    @property
    def overall_iou(self) -> float:
        """oIoU, 0 to 1."""
        return self.intersection / self.union if self.union else float("nan")

    @property
    def precision(self) -> dict[str, float]:
        """Share of expressions whose IoU is above a threshold: {"Pr@50": ..., ..., "Pr@90": ...}.

        Strictly above, as in the reference; NaN before the first pair.
        """
        values = np.asarray(self.ious)
        return {
            name: float((values > at).mean()) if values.size else float("nan")
            for name, at in zip(PRECISION_NAMES, PRECISION_AT, strict=True)
        }
