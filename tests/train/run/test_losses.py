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
