"""What a bundle's own test asks for, and the sentence that says what was missed.

Masks alone prove little: two empty ones agree, and a mask hides how far its logits are from the
threshold. So there must be masks to compare, and the logits are held to a budget, too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cris_deploy.bundle.fingerprints import ChangedWeight
from cris_deploy.bundle.manifest import (
    DEFAULT_MIN_IOU,
    Manifest,
    Precision,
    Route,
    RouteParity,
    StageParity,
)
from cris_deploy.errors import InputError
from cris_deploy.execution.backends import Compute
from cris_deploy.pixels.image import Letterbox
from cris_deploy.pixels.mask import Mask, mask_from_logits

# By what a bundle stores and what it is computed in. The worst samples of a full-size model with
# random weights, on which rounding weighs most, had 2.8e-5, 0.024, 0.19 and 0.33 in float32,
# float16, bfloat16 and int8; of the trained demo 1.2e-6, 0.0012, 0.015 and 0.087.
_LOGIT_BUDGETS: Final[Mapping[Precision, Mapping[Compute, float]]] = {
    Precision.FP32: {Compute.FP32: 2e-4, Compute.BF16: 0.3},
    Precision.FP16: {Compute.FP16: 0.06, Compute.FP32: 0.06, Compute.BF16: 0.3},
    Precision.INT8: {Compute.INT8: 0.5, Compute.INT8_BF16: 0.5},
}
_WAYS: Final = {Route.STAGES: "stages", Route.FULL: "full graph"}


class Bound(StrEnum):
    """What a bundle can miss, in the order in which it is said: each may hide those below it."""

    FINITE = "finite"
    VISIBLE = "visible"
    MASK_IOU = "mask-iou"
    LOGIT_ERROR = "logit-error"
    STAGE_ERROR = "stage-error"
    WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class Budget:
    """Least mean mask IoU, and largest relative errors of any sample's logits and stages' outputs.

    `stage_error` is None where stages round: what their outputs may lose, the logits have to say.
    """

    min_iou: float
    logit_error: float
    stage_error: float | None = None


@dataclass(frozen=True, slots=True)
class Miss:
    """The first bound that was missed, and the sentence that says by what."""

    bound: Bound
    text: str


@dataclass(frozen=True, slots=True)
class SampleCheck:
    """One sample by one route.

    `iou` of the two masks at image size, 0 to 1; `logit_error` the largest absolute difference of
    the logits and `relative_error` the root mean square of it over their standard deviation in
    FP32 PyTorch, None if they hold NaN or infinity; `area` what FP32 PyTorch's mask covers of the
    image, 0 to 1; `visible` if it is neither empty nor full.
    """

    route: Route
    image: str
    expression: str
    iou: float
    logit_error: float | None
    relative_error: float | None
    area: float
    visible: bool

    @property
    def counted(self) -> bool:
        """Whether it counts; masks that are both empty or both full would pad the mean IoU."""
        return self.visible or self.iou < 1.0


def logit_budgets(precision: Precision, asked: float | None = None) -> dict[Compute, float]:
    """Give the largest relative error of logits for all that such a bundle is computed in.

    `asked` takes the place of the defaults.
    """
    return {
        compute: default if asked is None else asked
        for compute, default in _LOGIT_BUDGETS[precision].items()
    }


def check_logit_budget(asked: float | None) -> None:
    """Raise InputError unless a budget that was asked for is a usable number."""
    if asked is not None and not 0.0 <= asked < math.inf:
        raise InputError(f"max_logit_error is {asked}: give 0 or more")


def budget_of(
    manifest: Manifest, compute: Compute, min_iou: float | None, max_logit_error: float | None
) -> Budget:
    """Give what a bundle is held to: what is asked, else its own, else the default."""
    if min_iou is None:
        min_iou = DEFAULT_MIN_IOU if manifest.parity is None else manifest.parity.min_iou
    if max_logit_error is None and manifest.parity is not None:
        max_logit_error = manifest.parity.logit_budgets.get(compute)
    if max_logit_error is None:
        defaults = logit_budgets(manifest.precision)
        max_logit_error = defaults.get(compute, max(defaults.values()))
    exact = manifest.precision is Precision.FP32 and compute is Compute.FP32
    return Budget(min_iou, max_logit_error, max_logit_error if exact else None)


def is_visible(logits: NDArray[np.float32], mask: Mask, input_size: int, threshold: float) -> bool:
    """Whether the mask (height, width) of one map of logits is neither empty nor full.

    Its pixels alone cannot say: at the border of the square filters fade out and ring, whatever the
    logits are. So the cells of the map whose centres lie in the picture have to disagree, too.
    """
    height, width = mask.shape[0], mask.shape[1]
    (sx, _, x), (_, sy, y) = Letterbox(height, width, input_size).matrix
    cell = input_size / len(logits)
    (top, bottom), (left, right) = (
        (math.ceil(start / cell - 0.5), math.ceil((start + length) / cell - 0.5))
        for start, length in ((y, sy * height), (x, sx * width))
    )
    with np.errstate(divide="ignore"):  # thresholds of 0 and 1 are infinite logits
        inside = logits[top:bottom, left:right] > np.log(threshold) - np.log1p(-threshold)
    rest = mask_from_logits(-logits, height, width, input_size, 1 - threshold)
    return bool(mask.any() and rest.any() and inside.any() and not inside.all())


def visible_share(samples: Sequence[SampleCheck]) -> float:
    """Give the share of samples whose mask in FP32 PyTorch is neither empty nor full."""
    return sum(sample.visible for sample in samples) / len(samples)


def route_parities(samples: Sequence[SampleCheck]) -> tuple[RouteParity, ...]:
    """Sum the samples up, route by route."""
    routes = []
    for route in Route:
        mine = [sample for sample in samples if sample.route is route]
        if not mine:
            continue
        ious = [sample.iou for sample in mine if sample.counted] or [1.0]
        relative = [sample.relative_error for sample in mine]
        finite = [error for error in relative if error is not None]
        routes.append(
            RouteParity(
                route,
                sum(ious) / len(ious),
                min(ious),
                max((sample.logit_error for sample in mine), key=_size),
                max(relative, key=_size),
                sum(finite) / len(finite) if len(finite) == len(mine) else None,
            )
        )
    return tuple(routes)


def worst_stage(stages: Sequence[StageParity]) -> StageParity | None:
    """Give the stage to blame: the first that gives NaN, or the one that moves the logits most."""
    for stage in stages:
        if stage.relative_error is None:
            return stage
    return max(stages, key=lambda stage: _size(stage.logit_error), default=None)


def judge(
    samples: Sequence[SampleCheck],
    routes: Sequence[RouteParity],
    stages: Sequence[StageParity],
    budget: Budget,
    changed: Sequence[ChangedWeight] = (),
) -> Miss | None:
    """Hold what came out to a budget; None if nothing was missed.

    Weights that changed since the export are a fault by themselves, and the reason of another one.
    """
    miss = (
        _not_finite(samples, routes, stages)
        or _nothing_visible(samples)
        or _masks(samples, routes, stages, budget.min_iou)
        or _logits(samples, routes, stages, budget.logit_error)
        or _stages(stages, budget.stage_error)
    )
    if not changed:
        return miss
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    weights = f"the weights of {changed[0]}{more} are not those that were exported"
    if miss is None:
        return Miss(Bound.WEIGHTS, f"{weights}: copy or export the bundle again")
    return Miss(miss.bound, f"{miss.text}; {weights}")


def nothing_to_see(empty: int, full: int) -> str:
    """Say that all of FP32 PyTorch's masks of the samples are empty or full, and what to do."""
    return (
        f"nothing can be seen on the samples: of FP32 PyTorch's own {empty + full} masks {empty} "
        f"are empty and {full} full, so they prove nothing: export with --samples FILE that names "
        "pictures and expressions like the model's own"
    )


def _nothing_visible(samples: Sequence[SampleCheck]) -> Miss | None:
    """One mask that can be seen is enough: it shows threshold and geometry.

    The logits of all samples are held to their budget anyway, and samples may well ask for what is
    absent from their picture.
    """
    mine = [sample for sample in samples if sample.route is samples[0].route]
    if any(sample.visible for sample in mine):
        return None
    empty = sum(sample.area == 0.0 for sample in mine)
    return Miss(Bound.VISIBLE, nothing_to_see(empty, len(mine) - empty))


def _not_finite(
    samples: Sequence[SampleCheck], routes: Sequence[RouteParity], stages: Sequence[StageParity]
) -> Miss | None:
    """NaN comes first: a NaN logit counts as outside of the mask, so an empty mask may hide it."""
    culprit = worst_stage(stages)
    broken = culprit is not None and culprit.relative_error is None
    for route in routes:
        if route.max_logit_error is None:
            mine = [sample for sample in samples if sample.route is route.route]
            bad = sum(sample.logit_error is None for sample in mine)
            where = f"; they begin in {culprit.stage}" if culprit is not None and broken else ""
            return Miss(
                Bound.FINITE,
                f"the logits of {bad} of {len(mine)} samples hold NaN or infinity, by the "
                f"{_WAYS[route.route]}{where}",
            )
    if culprit is not None and broken:
        return Miss(Bound.FINITE, f"the outputs of {culprit.stage} hold NaN or infinity")
    return None


def _masks(
    samples: Sequence[SampleCheck],
    routes: Sequence[RouteParity],
    stages: Sequence[StageParity],
    least: float,
) -> Miss | None:
    below = [route for route in routes if route.mean_iou < least]
    if not below:
        return None
    lowest = min(below, key=lambda route: route.mean_iou)
    worst = min((s for s in samples if s.route is lowest.route), key=lambda s: s.iou)
    return Miss(
        Bound.MASK_IOU,
        f"mean mask IoU {lowest.mean_iou:.4f} by the {_WAYS[lowest.route]} is below the budget "
        f"of {least:g}; worst {worst.iou:.4f} on {worst.image}, {worst.expression!r}"
        + _blame(below, stages),
    )


def _logits(
    samples: Sequence[SampleCheck],
    routes: Sequence[RouteParity],
    stages: Sequence[StageParity],
    most: float,
) -> Miss | None:
    above = [route for route in routes if _size(route.worst_relative_error) > most]
    if not above:
        return None
    highest = max(above, key=lambda route: _size(route.worst_relative_error))
    mine = [sample for sample in samples if sample.route is highest.route]
    worst = max(mine, key=lambda s: _size(s.relative_error))
    return Miss(
        Bound.LOGIT_ERROR,
        f"logit error {_size(worst.relative_error):.2g} by the {_WAYS[highest.route]} (root mean "
        f"square, relative to the deviation of FP32 PyTorch's logits) is above the budget of "
        f"{most:g}, on {worst.image}, {worst.expression!r}{_blame(above, stages)}",
    )


def _stages(stages: Sequence[StageParity], most: float | None) -> Miss | None:
    """In float32 a stage's own outputs show faults that these samples' logits happen not to."""
    worst = max(stages, key=lambda stage: _size(stage.relative_error), default=None)
    if most is None or worst is None or _size(worst.relative_error) <= most:
        return None
    return Miss(
        Bound.STAGE_ERROR,
        f"the outputs of {worst.stage} are off by {_size(worst.relative_error):.2g} on FP32 "
        f"PyTorch's own inputs (root mean square, relative), above the budget of {most:g}; worst "
        f"stage {worst.stage}",
    )


def _blame(missed: Sequence[RouteParity], stages: Sequence[StageParity]) -> str:
    if Route.STAGES not in [route.route for route in missed]:
        return "; the stages meet it, so the fault is in how they are joined"
    culprit = worst_stage(stages)
    if culprit is None:
        return ""
    moved = culprit.logit_error
    share = "" if moved is None else f", which alone moves the logits by {moved:.2%}"
    return f"; worst stage {culprit.stage}{share}"


def _size(error: float | None) -> float:
    """Order errors, with None, which stands for NaN and infinity, above all numbers."""
    return math.inf if error is None else error
