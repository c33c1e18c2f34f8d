"""The two small blocks that the neck and the projector are made of."""

from torch import nn


def conv_bn_relu(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU: (B, Cin, h, w) -> (B, Cout, h, w)."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def linear_bn_relu(channels_in: int, channels_out: int) -> nn.Sequential:
    """Linear layer without bias, batch norm, ReLU: (B, Cin) -> (B, Cout)."""
    return nn.Sequential(
        nn.Linear(channels_in, channels_out, bias=False),
        nn.BatchNorm1d(channels_out),
        nn.ReLU(inplace=True),
    )


def upsample2() -> nn.Upsample:
    """Bilinear doubling, align_corners false: (B, C, h, w) -> (B, C, 2h, 2w)."""
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
