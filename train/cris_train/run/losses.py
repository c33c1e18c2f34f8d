"""The training loss: text-to-pixel contrast (CRIS, section 3.4, equations 9 and 10).

`dice` adds to it what the paper has not: how far the mask is from its target as a whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cris_deploy.errors import InputError


class TextToPixelLoss(nn.Module):
    """Pulls the pixels of the object to the sentence and pushes all others from it.

    Equation 9: let s = sigmoid(z_t . z_i) be the likeness of the projected sentence z_t and the
    projected features z_i of pixel i. A pixel of the object costs -log s, any other -log(1 - s).
    Equation 10: the loss is the mean of these costs over all pixels of the map.

    The model's logits are those dot products already (its projector convolves the pixel features
    with the sentence's filter). Written so, the loss is binary cross-entropy with logits, which is
    how it is computed: log s of a large negative product would otherwise be -inf. A soft target t,
    for a pixel the object covers in part, costs -t log s - (1 - t) log(1 - s). The ablation without
    the contrastive head has the same loss on its plain convolution's logits.

    A mean over pixels makes an object count by its area: one of 1% of the picture a twentieth of
    one of 20%. With `dice` above 0 that much times 1 - 2 sum(s t) / (sum(s) + sum(t)) is added, the
    Dice loss of V-Net (Milletari et al., 2016, section 3; here without the squares), in which all
    expressions count alike.
    """

    def __init__(self, dice: float = 0.0) -> None:
        """`dice`: the Dice loss's share; 0 is the paper's loss."""
        super().__init__()
        self.dice = dice

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean cost of all pixels, and of all expressions for the Dice loss.

        Args:
            logits: (N, 1, h, w), the dot products, in any floating type.
            target: (N, 1, h, w) float32, 0 to 1; 1 is the object.

        Returns:
            () float32.

        Raises:
            InputError: the shapes differ.
        """
        if logits.shape != target.shape:
            raise InputError(
                f"target is {tuple(target.shape)}, logits are {tuple(logits.shape)}: both must be "
                f"(N, 1, input_size / 4, input_size / 4)"
            )
        # float16 logits would lose the small costs of pixels that are already right.
        with torch.autocast(logits.device.type, enabled=False):
            loss = F.binary_cross_entropy_with_logits(logits.float(), target)
            if self.dice:
                loss = loss + self.dice * _dice_loss(logits.float(), target).mean()
            return loss


def _dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """(N,), 0 to 1. One pixel more on either side: an empty target has a loss, and a gradient."""
    likeness, target = logits.sigmoid().flatten(1), target.flatten(1)
    common = (likeness * target).sum(1)
    return 1 - (2 * common + 1) / (likeness.sum(1) + target.sum(1) + 1)
