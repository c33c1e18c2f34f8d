"""The text-to-pixel contrastive loss against equations 9 and 10, pixel by pixel."""

import math

import pytest
import torch

from cris_deploy.errors import InputError
from cris_train.run.losses import TextToPixelLoss

LOSS = TextToPixelLoss()


def by_hand(logits: torch.Tensor, target: torch.Tensor) -> float:
    """A sigmoid of the dot product, -log of it or of the rest, the mean: in Python's floats."""
    costs = []
    for product, soft in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        likeness = 1.0 / (1.0 + math.exp(-product))
        costs.append(-soft * math.log(likeness) - (1.0 - soft) * math.log(1.0 - likeness))
    return math.fsum(costs) / len(costs)


@pytest.mark.parametrize("soft", [False, True])
def test_is_the_papers_mean_over_pixels(soft: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 1, 5, 5, generator=generator) * 3
    target = torch.rand(3, 1, 5, 5, generator=generator)
    target = target if soft else target.round()
    # Relative to float32's 6e-8, over 75 values of about the same size.
    assert float(LOSS(logits, target)) == pytest.approx(by_hand(logits, target), rel=1e-6)


def test_dice_counts_every_expression_alike() -> None:
    """Half of a small and half of a large object found cost nearly the same, by hand; in the mean
    over pixels the large one costs four times as much."""
    target = torch.zeros(2, 1, 8, 8)
    target[0, 0, :2, :2], target[1, 0, :4, :4] = 1, 1
    logits = torch.full_like(target, -30.0)
    logits[0, 0, :2, :1], logits[1, 0, :4, :2] = 30.0, 30.0  # half of each
    small, large = (
        [float(TextToPixelLoss(dice)(logits[i : i + 1], target[i : i + 1])) for dice in (0.0, 0.5)]
        for i in (0, 1)
    )
    assert large[0] == pytest.approx(4 * small[0])
    assert small[1] - small[0] == pytest.approx(0.5 * (1 - (2 * 2 + 1) / (2 + 4 + 1)), rel=1e-5)
    assert large[1] - large[0] == pytest.approx(0.5 * (1 - (2 * 8 + 1) / (8 + 16 + 1)), rel=1e-5)
    both = float(TextToPixelLoss(0.5)(logits, target))
    assert both == pytest.approx((small[1] + large[1]) / 2)


def test_dice_of_nothing_asks_for_nothing() -> None:
    logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
    TextToPixelLoss(1.0)(logits, torch.zeros(1, 1, 4, 4)).backward()
    assert logits.grad is not None
    assert bool((logits.grad > 0).all())  # a step against it lowers all of them


def test_certain_and_wrong_is_finite() -> None:
    logits = torch.full((1, 1, 2, 2), -300.0)  # its sigmoid is 0 in float32
    assert float(LOSS(logits, torch.ones_like(logits))) == 300.0


def test_half_precision_logits_cost_in_float32() -> None:
    logits = torch.full((1, 1, 4, 4), 12.0, dtype=torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSS(logits, torch.ones(1, 1, 4, 4))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(math.log1p(math.exp(-12.0)), rel=1e-5)


def test_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="target is"):
        LOSS(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))
