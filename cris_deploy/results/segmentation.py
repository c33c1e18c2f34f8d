"""What the engine gives for one expression."""

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from cris_deploy.execution.executor import Decoded
from cris_deploy.execution.steps import Prompt
from cris_deploy.pixels import image as images
from cris_deploy.pixels import mask as masks
from cris_deploy.pixels.measures import polygons
from cris_deploy.results import overlay


class RunLengths(TypedDict):
    """COCO's compressed run-length encoding of a mask."""

    size: list[int]
    counts: str


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """The pixels an expression refers to.

    Attributes:
        mask: (H, W) bool at the size of the image that was given.
        logits: (h, w) float32, the model's output in its own low resolution and letterboxed frame.
        expression: as it was given.
        truncated: whether the model saw only its beginning (see the bundle's word length).
        area: number of pixels in the mask.
        box: the mask's bounds (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; None if it is empty.
        threshold: probability above which a pixel is in the mask.
        probabilities: (H, W) float32 at the size of the image, 0..1 but for a little overshoot of
            the bicubic filter; None unless asked for.
    """

    mask: NDArray[np.bool_]
    logits: NDArray[np.float32]
    expression: str
    truncated: bool
    area: int
    box: masks.Box | None
    threshold: float
    probabilities: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, decoded: Decoded, prompt: Prompt) -> "Segmentation":
        """Make it of what was decoded for an expression."""
        upsampled, logits, step = decoded
        assert upsampled.mask is not None  # it was asked for
        return cls(
            upsampled.mask,
            logits,
            prompt.expression,
            prompt.truncated,
            upsampled.area,
            upsampled.box,
            step.threshold,
            upsampled.probabilities if step.probabilities else None,
        )

    @property
    def score(self) -> float:
        """The highest probability of any pixel, 0..1, in the low resolution."""
        return float(_sigmoid(self.logits.max(keepdims=True)).item())

    @property
    def confidence(self) -> float:
        """Mean probability inside the mask, 0..1; 0 if it is empty.

        Of the map at image size where there is one, else of the low resolution's cells above the
        threshold. It is the network's own number, not calibrated: 0.9 does not mean that nine of
        ten such masks are right.
        """
        if self.probabilities is not None:
            inside = self.probabilities[self.mask].astype(np.float64)
        else:
            values = _sigmoid(self.logits)
            inside = values[values > self.threshold]
        return float(inside.clip(0, 1).mean()) if inside.size else 0.0

    def polygons(self) -> list[NDArray[np.int32]]:
        """Give the outlines of the mask's parts, (n, 2) x and y of pixel centres, largest first."""
        return polygons(self.mask)

    def to_coco(
        self, image_id: int, annotation_id: int = 1, category_id: int = 1
    ) -> dict[str, Any]:
        """Give an annotation of COCO's format, as pycocotools loads it."""
        x0, y0, x1, y1 = self.box or (0, 0, 0, 0)
        return {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": category_id,
            "segmentation": self.rle(),
            "area": self.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
            "score": self.score,
            "caption": self.expression,
        }

    def to_json(self) -> dict[str, Any]:
        """Give what is said of a result in JSON: all but the arrays, the mask as run lengths."""
        return {
            "expression": self.expression,
            "truncated": self.truncated,
            "score": round(self.score, 6),
            "area": self.area,
            "box": self.box,
            "rle": self.rle(),
        }

    def rle(self) -> RunLengths:
        """Encode the mask as COCO's compressed run lengths: {"size": [H, W], "counts": str}."""
        height, width = self.mask.shape
        return {"size": [height, width], "counts": masks.rle(self.mask)}

    def overlay(
        self, image: images.ImageInput, max_pixels: int = images.MAX_PIXELS
    ) -> images.Pixels:
        """Draw the mask onto the image that was segmented: (H, W, 3) uint8 RGB.

        Raises ImageError, and InputError if the image has another size than the mask.
        """
        rgb = images.decode(image, max_pixels)
        return overlay.draw(rgb, [self.mask], [overlay.colour(0)])

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return (
            f"Segmentation({self.expression!r}, {width} x {height}, area={self.area}, "
            f"box={self.box}, score={self.score:.3f}{', truncated' if self.truncated else ''})"
        )


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    # In one of two forms for each sign, since exp overflows on one side.
    small = np.exp(-np.abs(logits.astype(np.float64)))
    found: NDArray[np.float64] = np.where(logits >= 0, 1, small) / (1 + small)
    return found
