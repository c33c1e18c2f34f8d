"""Exact rewrites: algebra on weights that makes the graph smaller and changes nothing else.

Every function here computes in float64 and returns float32, so that a rewrite costs less accuracy
than one float32 layer. `tests/export/test_fold.py` proves each against the plain form.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from open_clip.modified_resnet import Bottleneck
from torch import Tensor, nn
from torch.nn import functional as F

from cris_train.model.backbone import ImageEncoder
from cris_train.model.positions import coordinates


class Affine(NamedTuple):
    """y = scale * x + shift, per channel, float64: what a batch norm does in evaluation."""

    scale: Tensor
    shift: Tensor


def batch_norm_affine(norm: nn.Module) -> Affine:
    """The affine map of a batch norm with frozen statistics."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return Affine(scale, norm.bias.double() - norm.running_mean.double() * scale)


def fold_conv(conv: nn.Module, norm: nn.Module) -> nn.Conv2d:
    """Convolution and batch norm -> one convolution with bias."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    affine = batch_norm_affine(norm)
    bias = affine.shift
    if conv.bias is not None:
        bias = bias + conv.bias.double() * affine.scale
    stride = conv.stride[0]
    return conv2d(conv.weight.double() * affine.scale[:, None, None, None], bias, stride)


def fold_linear(linear: nn.Module, norm: nn.Module) -> nn.Linear:
    """Linear layer and batch norm -> one linear layer with bias."""
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    affine = batch_norm_affine(norm)
    bias = affine.shift
    if linear.bias is not None:
        bias = bias + linear.bias.double() * affine.scale
    return linear_layer(linear.weight.double() * affine.scale[:, None], bias)


def fold_block(block: nn.Sequential) -> nn.Conv2d:
    """A ConvBNReLU -> its convolution with bias, before the ReLU."""
    return fold_conv(block[0], block[1])


def fold_image_encoder(encoder: ImageEncoder, side: int) -> ImageEncoder:
    """A copy of the image encoder without batch norms, its position grid resized to side x side."""
    folded = copy.deepcopy(encoder)
    for module in folded.modules():
        if isinstance(module, (ImageEncoder, Bottleneck)):
            for index in (1, 2, 3):
                conv, norm = getattr(module, f"conv{index}"), getattr(module, f"bn{index}")
                setattr(module, f"conv{index}", fold_conv(conv, norm))
                setattr(module, f"bn{index}", nn.Identity())
        if isinstance(module, Bottleneck) and module.downsample is not None:
            pool, conv, norm = module.downsample
            module.downsample = nn.Sequential(pool, fold_conv(conv, norm))
    pool = folded.attnpool
    grid = pool.position_embedding(side, side)
    pool.positional_embedding = nn.Parameter(torch.cat([pool.positional_embedding[:1], grid]))
    pool.grid = side
    pool.connect = nn.Sequential(fold_block(pool.connect))
    return folded


def split_conv1x1(conv: nn.Conv2d, widths: Sequence[int]) -> list[nn.Conv2d]:
    """A 1x1 convolution of a concatenation -> one per part, to be added; the first has the bias."""
    parts = torch.split(conv.weight.double(), list(widths), dim=1)
    bias = conv.bias.double() if conv.bias is not None else None
    return [conv2d(part, bias if i == 0 else None) for i, part in enumerate(parts)]


def split_block(block: nn.Sequential, first: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A ConvBNReLU1x1 of a concatenation -> the halves before the ReLU (the first has the bias)."""
    conv = fold_block(block)
    left, right = split_conv1x1(conv, [first, conv.in_channels - first])
    return left, right


def split_coordinates(conv: nn.Conv2d, height: int, width: int) -> tuple[nn.Conv2d, Tensor]:
    """A 3x3 convolution over [features, x, y] -> one over features, and a constant map to add.

    Returns:
        The convolution without bias, and the map (1, C, height, width) that holds the bias and what
        the coordinates contribute.
    """
    features = conv.weight.shape[1] - 2
    where = coordinates(height, width).double()
    bias = conv.bias.double() if conv.bias is not None else None
    constant = F.conv2d(where, conv.weight[:, features:].double(), bias, padding=1)
    return conv2d(conv.weight[:, :features].double(), None), constant.float()


class AttentionWeights(NamedTuple):
    """Projections of an attention whose queries and keys carry constant position codes.

    `(x + code) W + b = x W + (code W + b)`: the codes move into the bias, which then differs by
    position, and the 1 / sqrt(head width) of the scores into the queries.
    """

    query: Tensor  # (W, Cq)
    query_bias: Tensor  # (Nq, W)
    key: Tensor  # (W, Ck)
    key_bias: Tensor  # (Nk, W)
    value: Tensor  # (W, Ck)
    value_bias: Tensor  # (W,)


def fold_positions(
    attention: nn.MultiheadAttention, query_code: Tensor, key_code: Tensor
) -> AttentionWeights:
    """Fold position codes (N, C) of queries and keys into the biases of an attention."""
    packed: Tensor | None = attention.in_proj_weight
    if packed is not None:
        query, key, value = packed.double().chunk(3)
    else:  # words and pixels of different widths
        query = attention.q_proj_weight.double()
        key = attention.k_proj_weight.double()
        value = attention.v_proj_weight.double()
    query_bias, key_bias, value_bias = attention.in_proj_bias.double().chunk(3)
    scale = (attention.embed_dim // attention.num_heads) ** -0.5
    return AttentionWeights(
        query=(query * scale).float(),
        query_bias=((query_code.double() @ query.T + query_bias) * scale).float(),
        key=key.float(),
        key_bias=(key_code.double() @ key.T + key_bias).float(),
        value=value.float(),
        value_bias=value_bias.float(),
    )


def conv2d(weight: Tensor, bias: Tensor | None, stride: int = 1) -> nn.Conv2d:
    """A float32 convolution, zero-padded to keep the size at stride 1, from float64 weights."""
    out, channels, kernel, _ = weight.shape
    conv = nn.Conv2d(
        channels, out, kernel, stride, kernel // 2, bias=bias is not None, device="meta"
    )
    conv.weight = _frozen(weight)
    if bias is not None:
        conv.bias = _frozen(bias)
    return conv


def linear_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A float32 linear layer from float64 weights."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = _frozen(weight), _frozen(bias)
    return linear


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().to(torch.float32).contiguous(), requires_grad=False)
