"""Sine position codes of words and of pixels (CRIS, section 3.3)."""

import math

import torch
from torch import Tensor


def words_code(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Position code of a word sequence: sine in even channels, cosine in odd ones.

    Returns:
        (length, width) float32 on `device`.
    """
    position = torch.arange(length, dtype=torch.float32, device=device)
    return _interleaved(position, width)


def pixels_code(
    height: int, width: int, channels: int, device: torch.device | None = None
) -> Tensor:
    """Position code of a feature map: the first half of the channels for x, the second for y.

    Returns:
        (height * width, channels) float32 on `device`, row by row.
    """
    half = channels // 2
    columns = torch.arange(width, dtype=torch.float32, device=device)
    rows = torch.arange(height, dtype=torch.float32, device=device)
    x, y = _interleaved(columns, half), _interleaved(rows, half)  # (width, half), (height, half)
    code = torch.cat(
        [
            x[None, :, :].expand(height, width, half),
            y[:, None, :].expand(height, width, half),
        ],
        dim=2,
    )  # (height, width, channels)
    return code.reshape(height * width, channels)


def coordinates(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """The neck's coordinate channels, x first, each from -1 to 1: (1, 2, height, width)."""
    x = torch.linspace(-1, 1, width, device=device)[None, :].expand(height, width)
    y = torch.linspace(-1, 1, height, device=device)[:, None].expand(height, width)
    return torch.stack([x, y])[None]


def _interleaved(position: Tensor, width: int) -> Tensor:
    """(n,) -> (n, width): sin and cos of n positions at geometric frequencies, interleaved."""
    even = torch.arange(0, width, 2, dtype=torch.float32, device=position.device)
    rate = torch.exp(even * (-math.log(10000.0) / width))
    angle = position[:, None] * rate  # (n, width / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)
