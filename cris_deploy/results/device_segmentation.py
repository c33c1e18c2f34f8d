"""What the engine gives for one expression where the mask is to stay on the GPU."""

from dataclasses import dataclass

import numpy as np

from cris_deploy.execution.cuda.executor import DeviceMask
from cris_deploy.execution.cuda.memory import SharedTensor
from cris_deploy.execution.steps import Prompt
from cris_deploy.results.segmentation import Segmentation


@dataclass(frozen=True, slots=True, eq=False)
class DeviceSegmentation:
    """The pixels an expression refers to, in GPU memory.

    Attributes:
        mask: (H, W) bool at the size of the image that was given.
        logits: (h, w), the model's output in its own low resolution and letterboxed frame, in the
            type of the bundle's graph.
        stats: (5,) int64: area, x0, y0, x1, y1 (x1 and y1 exclusive; x0 >= x1 for an empty mask).
        expression: as it was given.
        truncated: whether the model saw only its beginning (see the bundle's word length).
        threshold: probability above which a pixel is in the mask.

    The tensors have DLPack and `__cuda_array_interface__`; results of one call share an allocation,
    which lives as long as any of them.
    """

    mask: SharedTensor
    logits: SharedTensor
    stats: SharedTensor
    expression: str
    truncated: bool
    threshold: float

    @classmethod
    def of(cls, found: DeviceMask, prompt: Prompt) -> "DeviceSegmentation":
        """Make it of what was decoded for an expression."""
        return cls(
            found.mask,
            found.logits,
            found.stats,
            prompt.expression,
            prompt.truncated,
            found.threshold,
        )

    def to_host(self) -> Segmentation:
        """Wait, and copy everything to the host; BackendError if the work failed."""
        area, *box = (int(value) for value in self.stats.to_host())
        x0, y0, x1, y1 = box
        return Segmentation(
            self.mask.to_host(),
            self.logits.to_host().astype(np.float32, copy=False),
            self.expression,
            self.truncated,
            area,
            (x0, y0, x1, y1) if area else None,
            self.threshold,
        )
