"""The training loss: text-to-pixel contrast (CRIS, section 3.4, equations 9 and 10)."""

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
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean cost of all pixels.

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
            return F.binary_cross_entropy_with_logits(logits.float(), target)
