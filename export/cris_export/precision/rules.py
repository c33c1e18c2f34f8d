"""What float16 cannot do: numbers measured on samples, their limits, and how far a remedy reaches.

What a graph needs is found from the samples (`ranges.py`), not from names: a layer norm or softmax
is nothing special here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum

import numpy as np

from cris_export.precision.ranges import LayerMeasure

FLOAT16_MAX = float(np.finfo(np.float16).max)  # 65504
# Other images and expressions may drive a value to a few times what the samples show.
HEADROOM = 4.0
# One rounding makes a relative error of 2.1e-4 over a tensor. Some fifty layers of that, which add
# up as squares do, make 1.5e-3: no single node may cost more than all of them.
ROUNDING_LIMIT = 1.5e-3

# The operators with the multiply-adds; all others are cheap, whatever type they compute in.
PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})


class RuleName(StrEnum):
    """Why a node computes in float32."""

    RANGE = "range"
    RESOLUTION = "resolution"
    WEIGHT_RANGE = "weight range"
    WEIGHT_RESOLUTION = "weight resolution"
    INNER_SQUARES = "inner squares"
    INNER_SUM = "inner sum"
    SENSITIVITY = "sensitivity"
    FACE = "face"  # reads or writes what another stage keeps in float32
    FEWER_CASTS = "fewer casts"


class Reach(Enum):
    """What has to be float32 to undo a node's trouble."""

    NODE = "the arithmetic inside the node"
    OUTPUT = "the node's result: the node and all that read it"
    INPUTS = "what the node reads: the node and all that feed it"


@dataclass(frozen=True)
class Rule:
    """Keeps nodes in float32 of which a number is above the limit.

    Attributes:
        name: Which rule.
        number: What is compared with the limit.
        limit: What float16 allows.
        reach: What has to be float32 then.
    """

    name: RuleName
    number: Callable[[LayerMeasure], float]
    limit: float
    reach: Reach


RULES = (
    # The result leaves float16's range.
    Rule(RuleName.RANGE, lambda layer: layer.largest, FLOAT16_MAX / HEADROOM, Reach.OUTPUT),
    # Most of the result is below 6e-5, where float16 has fewer than 11 bits.
    Rule(RuleName.RESOLUTION, lambda layer: layer.rounding, ROUNDING_LIMIT, Reach.OUTPUT),
    # Weights do not change with the sample: no headroom. Infinities are masks, float16 has them.
    Rule(RuleName.WEIGHT_RANGE, lambda layer: layer.weight_largest, FLOAT16_MAX, Reach.NODE),
    Rule(
        RuleName.WEIGHT_RESOLUTION, lambda layer: layer.weight_rounding, ROUNDING_LIMIT, Reach.NODE
    ),
    # A norm's sum of squares leaves float16's range, though its input and result fit well. ONNX's
    # layer norm asks for float32 inside (`stash_type`), but kernels and fusions that sum in float16
    # exist; in the island there is no doubt. The headroom counts twice: they are squares.
    Rule(
        RuleName.INNER_SQUARES,
        lambda layer: layer.inner_squares,
        FLOAT16_MAX / HEADROOM**2,
        Reach.NODE,
    ),
    # A mean's sum leaves float16's range before it is divided.
    Rule(RuleName.INNER_SUM, lambda layer: layer.inner_sum, FLOAT16_MAX / HEADROOM, Reach.NODE),
    # The node blows up the rounding of its inputs: a softmax of large scores, a cancellation. A
    # softmax's relative error is the absolute error of its scores, which grows with the scores:
    # those of 80 are rounded by up to 0.03. It helps nothing to compute such a node in float32 from
    # rounded inputs, so that the products that give the scores come along.
    Rule(RuleName.SENSITIVITY, lambda layer: layer.sensitivity, ROUNDING_LIMIT, Reach.INPUTS),
)


def broken(layer: LayerMeasure | None) -> Iterator[tuple[Rule, float]]:
    """The rules that a layer breaks; a number that is no number breaks them, too."""
    if layer is not None:
        for rule in RULES:
            number = rule.number(layer)
            if not number <= rule.limit:
                yield rule, number
