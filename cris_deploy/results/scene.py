"""An image that is encoded once, for any number of expressions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from cris_deploy.execution.steps import EncodedPicture, Prompt, Steps
from cris_deploy.results.segmentation import Segmentation

if TYPE_CHECKING:
    from cris_deploy.results.device_segmentation import DeviceSegmentation


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """An image whose features are computed; segment it with any number of expressions.

    Attributes:
        steps: Those of the engine that encoded it.
        encoded: Its features, and the image's size.
    """

    steps: Steps
    encoded: EncodedPicture

    @property
    def height(self) -> int:
        """Of the image, in pixels."""
        return self.encoded.height

    @property
    def width(self) -> int:
        """Of the image, in pixels."""
        return self.encoded.width

    @overload
    def segment(  # type: ignore[overload-overlap]
        self, expression: str, *, threshold: float | None = None, probabilities: bool = False
    ) -> Segmentation: ...
    @overload
    def segment(
        self,
        expression: Sequence[str],
        *,
        threshold: float | None = None,
        probabilities: bool = False,
    ) -> list[Segmentation]: ...
    def segment(
        self,
        expression: str | Sequence[str],
        *,
        threshold: float | None = None,
        probabilities: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Segment with one expression, or with several to get a list in their order.

        `threshold` and `probabilities` are as in `Engine.segment`. Raises ExpressionError for an
        unusable expression, BackendError if the runtime fails.
        """
        prompts = self.steps.read_expressions(expression, threshold, probabilities)
        results = segment_prompts(self, prompts)
        return results[0] if isinstance(expression, str) else results

    @overload
    def segment_on_device(  # type: ignore[overload-overlap]
        self, expression: str, *, stream: object = None, threshold: float | None = None
    ) -> "DeviceSegmentation": ...
    @overload
    def segment_on_device(
        self, expression: Sequence[str], *, stream: object = None, threshold: float | None = None
    ) -> "list[DeviceSegmentation]": ...
    def segment_on_device(
        self,
        expression: str | Sequence[str],
        *,
        stream: object = None,
        threshold: float | None = None,
    ) -> "DeviceSegmentation | list[DeviceSegmentation]":
        """Segment as `segment` does and leave the masks on the GPU; see `Engine`'s of that name."""
        from cris_deploy.results.device_segmentation import DeviceSegmentation

        prompts = self.steps.read_expressions(expression, threshold)
        found = self.steps.decode_masks_on_device([self.encoded] * len(prompts), prompts, stream)
        results = [DeviceSegmentation.of(*item) for item in zip(found, prompts, strict=True)]
        return results[0] if isinstance(expression, str) else results


def segment_prompts(scene: Scene, prompts: Sequence[Prompt]) -> list[Segmentation]:
    """Segment a scene with expressions that were read."""
    decoded = scene.steps.decode_masks([scene.encoded] * len(prompts), prompts)
    return [Segmentation.of(*item) for item in zip(decoded, prompts, strict=True)]
