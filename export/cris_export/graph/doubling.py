"""The projector's doublings: bilinear, to twice the size, each with a 3x3 convolution after it.

Both forms are exact up to rounding and take a quarter of the products, and a few: convolutions for
wide models, products of matrices for narrow ones (docs/decisions/0006-convolve-before-doubling.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Where products of matrices are the faster form, measured: up to so many channels, and so many for
# each pixel of the coarse map's side, since the constant matrices grow with it.
NARROW = 128
CHANNELS_A_PIXEL = 6


def is_narrow(width: int, grid: int) -> bool:
    """True for a model whose doublings are products of matrices."""
    return CHANNELS_A_PIXEL * grid <= width <= NARROW


class Doublings(nn.Module):
    """Both doublings and convolutions, each with its ReLU, in the form that suits the width."""

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d, grid: int) -> None:
        super().__init__()
        self.grid, self.narrow = grid, is_narrow(first.in_channels, grid)
        self.first: nn.Module
        self.second: nn.Module
        if self.narrow:
            self.first, self.second = UpsampledRows(first, grid), UpsampledRows(second, 2 * grid)
        else:
            self.first, self.second = UpsampledConv(first), UpsampledConv(second)

    def forward(self, pixels: Tensor) -> Tensor:
        """Rows of channels (n, grid * grid, C) -> maps (n, C / 2, 16 * grid * grid)."""
        if not self.narrow:  # n(hw)C -> nChw
            pixels = pixels.transpose(1, 2).reshape(-1, pixels.shape[2], self.grid, self.grid)
        pixels = F.relu(self.second(F.relu(self.first(pixels))))
        return pixels.transpose(1, 2) if self.narrow else pixels.flatten(2)


class UpsampledConv(nn.Module):
    """Bilinear doubling and a 3x3 convolution with zero padding, for a quarter of the products.

    Doubling is a filter of the picture with zeros between its pixels, and filters commute: the
    convolution runs first, and the filter (1, 3, 3, 1) / 4 along both axes after it, channel by
    channel. On a picture of mostly zeros a convolution is four small ones, for even and odd rows
    and columns, which share out the nine taps: convolutions, and no transposed one, because every
    runtime computes those well in every precision. At the edge the two orders differ (doubling
    repeats the edge, the convolution sees zeros beyond it), so the outermost rows and columns are
    computed in the plain order.
    """

    weight: Tensor
    blur: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        self.register_buffer("weight", conv.weight.detach())
        self.register_buffer("bias", conv.bias.detach())
        line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
        blur = (line[:, None] * line).expand(conv.out_channels, 1, 4, 4)
        self.register_buffer("blur", blur.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(n, Cin, h, w) -> (n, Cout, 2h, 2w), before the ReLU."""
        w = self.weight
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        phases = [
            F.conv2d(padded, w[:, :, ::2, ::2]),  # each (n, Cout, h + 1, w + 1)
            F.conv2d(padded[:, :, :, 1:], w[:, :, ::2, 1:2]),
            F.conv2d(padded[:, :, 1:], w[:, :, 1:2, ::2]),
            F.conv2d(padded[:, :, 1:, 1:], w[:, :, 1:2, 1:2]),
        ]
        # The last row and column stem from the padding alone.
        spread = _interleave(phases)[:, :, :-1, :-1]
        inner = F.conv2d(spread, self.blur, self.bias, groups=len(self.blur))  # without edges
        # Two rows (columns) of x suffice for the two of its doubling that an edge depends on, and
        # two of the three rows (columns) of the weights: the third meets zeros.
        top = self._edge(x[:, :, :2], slice(None, 2), slice(None), w[:, :, 1:])
        bottom = self._edge(x[:, :, -2:], slice(-2, None), slice(None), w[:, :, :2])
        left = self._edge(x[:, :, :, :2], slice(None), slice(None, 2), w[:, :, :, 1:])
        right = self._edge(x[:, :, :, -2:], slice(None), slice(-2, None), w[:, :, :, :2])
        middle = torch.cat([left[:, :, 1:-1], inner, right[:, :, 1:-1]], dim=3)
        return torch.cat([top, middle, bottom], dim=2)

    def _edge(self, x: Tensor, rows: slice, columns: slice, weight: Tensor) -> Tensor:
        """The outermost row or column in the plain order, of two of `x` and their doubling."""
        doubled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        height, width = weight.shape[2:]
        padding = (height // 2 if height == 3 else 0, width // 2 if width == 3 else 0)
        return F.conv2d(doubled[:, :, rows, columns], weight, self.bias, padding=padding)


def _interleave(phases: list[Tensor]) -> Tensor:
    """Four (n, C, h, w), even and odd rows, each even and odd columns -> (n, C, 2h, 2w)."""
    _, channels, height, width = phases[0].shape
    grid = torch.cat(phases, dim=1).reshape(-1, 2, 2, channels, height, width)
    # n 2 2 C h w -> n C h 2 w 2
    return grid.permute(0, 3, 4, 1, 5, 2).reshape(-1, channels, 2 * height, 2 * width)


class UpsampledRows(nn.Module):
    """The same as products of matrices, over pixels that are rows of channels.

    One product gives each pixel's part in all nine taps. What is left is linear in the columns of
    the map, and then in its rows: doubling, moving a tap to where it looks, zeros beyond the edge
    and the sum are one constant matrix for each. Nothing is cut, joined or treated apart at edges;
    but these matrices grow with the map, which narrow models keep small.
    """

    weight: Tensor
    along: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, grid: int) -> None:
        super().__init__()
        assert conv.bias is not None
        self.grid, self.channels = grid, conv.out_channels
        weight = conv.weight.detach().permute(1, 3, 2, 0)  # Cin, columns' taps, rows' taps, Cout
        self.register_buffer("weight", weight.reshape(conv.in_channels, -1).contiguous())
        self.register_buffer("bias", conv.bias.detach())
        self.register_buffer("along", taps_of_doubled(grid))

    def forward(self, x: Tensor) -> Tensor:
        """(n, h * h, Cin) -> (n, 2h * 2h, Cout), before the ReLU."""
        grid, channels = self.grid, self.channels
        taps = (x @ self.weight).reshape(-1, grid, grid * 3, 3 * channels)
        columns = (self.along @ taps).reshape(-1, grid, 2 * grid, 3, channels)
        columns = columns.transpose(2, 3).reshape(-1, grid * 3, 2 * grid * channels)
        rows = (self.along @ columns).reshape(-1, 4 * grid * grid, channels)
        return rows + self.bias


def taps_of_doubled(size: int) -> Tensor:
    """What a line of `size` pixels with three taps each adds to the doubled line.

    Returns:
        (2 * size, size * 3), pixel-major; the taps look at the pixel before, at, and after theirs.
    """
    line = torch.eye(size, dtype=torch.float64)[None]  # one channel for each pixel
    doubled = F.interpolate(line, scale_factor=2, mode="linear", align_corners=False)[0]
    seen = F.pad(doubled, (1, 1)).unfold(1, 2 * size, 1)  # pixel, tap, doubled pixel
    return seen.reshape(size * 3, 2 * size).T.contiguous().float()
