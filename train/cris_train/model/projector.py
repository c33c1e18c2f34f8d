"""The projector: the sentence becomes a filter, the filter finds its pixels (CRIS, eq. 8 to 10)."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cris_train.model.blocks import conv_bn_relu, upsample2
from cris_train.model.config import CrisConfig


def dynamic_conv3x3(features: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution, zero padding 1, with another kernel for every sample.

    A grouped convolution would say the same, but bakes the batch size into the exported graph. Here
    each of the nine taps is a matrix product with the features, and a fixed convolution shifts the
    nine maps into place and adds them, which exports with a free batch.

    Args:
        features: (B, C, h, w)
        kernels: (B, C * 9), channel-major as the reference stores them
        bias: (B,)

    Returns:
        (B, 1, h, w)
    """
    batch, channels, height, width = features.shape
    taps = kernels.reshape(batch, channels, 9).transpose(1, 2)  # B(C*9) -> B9C
    maps = (taps @ features.flatten(2)).reshape(batch, 9, height, width)
    return shift_and_add(maps) + bias[:, None, None, None]


def shift_and_add(maps: Tensor) -> Tensor:
    """Moves the map of each 3x3 tap to where the tap looks and adds the nine.

    Args:
        maps: (B, 9, h, w), row-major taps; outside of them is zero

    Returns:
        (B, 1, h, w)
    """
    selector = torch.eye(9, dtype=maps.dtype, device=maps.device).reshape(1, 9, 3, 3)
    return F.conv2d(maps, selector, padding=1)


class Projector(nn.Module):
    """Pixel features at stride 4, and the text-to-pixel head (or the ablation's convolution)."""

    def __init__(self, config: CrisConfig) -> None:
        super().__init__()
        width, half = config.neck_width, config.neck_width // 2
        self.vis = nn.Sequential(
            upsample2(),
            conv_bn_relu(width, width, 3),
            upsample2(),
            conv_bn_relu(width, half, 3),
            nn.Conv2d(half, half, 1),
        )
        if config.contrastive:
            self.txt = nn.Linear(config.embed_dim, half * 9 + 1)
        else:
            self.out = nn.Conv2d(half, 1, 3, padding=1)

    @property
    def last(self) -> nn.Conv2d:
        """The 1x1 convolution, with bias and without ReLU, that ends the visual branch."""
        return cast(nn.Conv2d, self.vis[4])

    def forward(self, fused: Tensor, sentence: Tensor) -> Tensor:
        """Map (B, W, S/16, S/16), sentence (B, embed_dim) -> logits (B, 1, S/4, S/4)."""
        pixels = self.vis(fused)
        if not hasattr(self, "txt"):
            plain: Tensor = self.out(pixels)
            return plain
        filters = self.txt(sentence)  # (B, half * 9 + 1), the bias last
        return dynamic_conv3x3(pixels, filters[:, :-1], filters[:, -1])
