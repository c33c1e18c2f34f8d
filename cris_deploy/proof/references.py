"""A bundle's samples, with FP32 PyTorch's answers to them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cris_deploy.bundle.arrays import read_arrays
from cris_deploy.bundle.manifest import GraphName, Route, Sample, TensorSpec
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BundleError
from cris_deploy.pixels.mask import Mask, mask_from_logits, overlap
from cris_deploy.proof.deviation import Deviation, finite
from cris_deploy.proof.gate import SampleCheck, is_visible

Tensors: TypeAlias = dict[str, NDArray[Any]]
"""A stage's inputs or outputs by name."""

ENCODERS: Final = (GraphName.IMAGE_ENCODER, GraphName.TEXT_ENCODER)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A sample with FP32 PyTorch's answer, and its features if the bundle holds them."""

    sample: Sample
    path: Path
    logits: NDArray[np.float32]
    mask: Mask
    visible: bool
    scene: Tensors | None
    text: Tensors | None

    def compare(self, route: Route, mask: Mask, logits: NDArray[np.float32]) -> SampleCheck:
        """Compare what came out by a route with PyTorch's answer."""
        # Over their deviation, not their size: where all logits are about -5, an error of one in
        # five is no small one.
        spread = self.logits - self.logits.mean(dtype=np.float64)
        error = Deviation.of(logits, self.logits, scale=spread)
        return SampleCheck(
            route,
            self.path.name,
            self.sample.expression,
            overlap(mask, self.mask).iou,
            finite(error.largest),
            finite(error.relative),
            float(self.mask.mean()),
            self.visible,
        )


def read_references(bundle: Bundle) -> list[Reference]:
    """Read a bundle's samples; BundleError if it has none, or they cannot be read."""
    model = bundle.manifest.model
    if not bundle.manifest.samples:
        raise BundleError(f"bundle {bundle.path} has no samples to check with: export it again")
    scene_specs, text_specs = (bundle.manifest.graphs[name].outputs for name in ENCODERS)
    scenes: dict[str, Tensors] = {}
    references = []
    for sample in bundle.manifest.samples:
        if sample.scene is not None and sample.scene not in scenes:
            scenes[sample.scene] = _read_features(bundle, sample.scene, scene_specs)
        logits = bundle.sample_logits(sample)
        mask = mask_from_logits(
            logits, sample.height, sample.width, model.input_size, model.threshold
        )
        scene = None if sample.scene is None else scenes[sample.scene]
        text = None if sample.text is None else _read_features(bundle, sample.text, text_specs)
        path = bundle.sample_image(sample)
        visible = is_visible(logits, mask, model.input_size, model.threshold)
        references.append(Reference(sample, path, logits, mask, visible, scene, text))
    return references


def _read_features(bundle: Bundle, name: str, specs: Iterable[TensorSpec]) -> Tensors:
    """Read a stage's outputs for one image or expression: first axis 1, no types of the graph."""
    try:
        shapes = {
            spec.name: (1, *(size for size in spec.shape[1:] if isinstance(size, int)))
            for spec in specs
        }
        return read_arrays(bundle.path / name, shapes)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"bundle {bundle.path}: {name} cannot be read ({error}): export it again"
        ) from None
