"""What the engine hands from step to step: a picture, a prompt, an image with its features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from cris_deploy.execution.executor import Features
from cris_deploy.pixels.image import Pixels
from cris_deploy.results.segmentation import Segmentation

if TYPE_CHECKING:
    from cris_deploy.engine import Engine
    from cris_deploy.results.device_segmentation import DeviceSegmentation


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image, letterboxed to (S, S, 3) uint8 RGB, and the size it had."""

    square: Pixels
    height: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """An expression as it was given, its tokens (word_len,) int64, and whether they were cut."""

    expression: str
    tokens: NDArray[np.int64]
    truncated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """An image whose features are computed; segment it with any number of expressions."""

    engine: "Engine"
    features: Features
    height: int
    width: int

    @overload
    def segment(self, expression: str) -> Segmentation: ...  # type: ignore[overload-overlap]
    @overload
    def segment(self, expression: Sequence[str]) -> list[Segmentation]: ...
    def segment(self, expression: str | Sequence[str]) -> Segmentation | list[Segmentation]:
        """Segment with one expression, or with several to get a list in their order.

        Raises ExpressionError for an unusable expression, BackendError if the runtime fails.
        """
        prompts = self.engine.read_expressions(expression)
        results = self.engine.decode_masks([self] * len(prompts), prompts)
        return results[0] if isinstance(expression, str) else results

    @overload
    def segment_on_device(  # type: ignore[overload-overlap]
        self, expression: str, *, stream: object = None
    ) -> "DeviceSegmentation": ...
    @overload
    def segment_on_device(
        self, expression: Sequence[str], *, stream: object = None
    ) -> "list[DeviceSegmentation]": ...
    def segment_on_device(
        self, expression: str | Sequence[str], *, stream: object = None
    ) -> "DeviceSegmentation | list[DeviceSegmentation]":
        """Segment as `segment` does and leave the masks on the GPU; see `Engine`'s of that name."""
        prompts = self.engine.read_expressions(expression)
        results = self.engine.decode_masks_on_device([self] * len(prompts), prompts, stream)
        return results[0] if isinstance(expression, str) else results
