"""CLIP's two encoders, used densely: features at three strides, and a feature for every word."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn
from torch.nn import functional as F

from cris_train.model.config import CrisConfig


class ImageFeatures(NamedTuple):
    """What the image encoder gives the neck.

    Attributes:
        c3: (B, 8w, S/8, S/8)
        c4: (B, 16w, S/16, S/16)
        c5: (B, embed_dim, S/32, S/32), after dense attention pooling
    """

    c3: Tensor
    c4: Tensor
    c5: Tensor


class TextFeatures(NamedTuple):
    """What the text encoder gives the rest of the model.

    Attributes:
        words: (B, L, text_width), normed and not projected
        sentence: (B, embed_dim), the projected activation at the end token
        padding: (B, L) bool, True where the token is 0
    """

    words: Tensor
    sentence: Tensor
    padding: Tensor


class DenseAttentionPool(AttentionPool2d):
    """CLIP's attention pooling without the pooling: every position asks, every position answers.

    The class token and its position are left out, and a 1x1 convolution of the input (`connect`)
    is added before a ReLU, as the reference does to C5.
    """

    def __init__(self, grid: int, channels: int, heads: int, channels_out: int) -> None:
        super().__init__(grid, channels, heads, channels_out)
        self.grid = grid
        self.connect = nn.Sequential(
            nn.Conv2d(channels, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out)
        )

    def position_embedding(self, height: int, width: int) -> Tensor:
        """The learnt grid, resized bicubic to the feature map: (height * width, channels)."""
        grid: Tensor = self.positional_embedding[1:]  # no class position: (grid * grid, C)
        if height == width == self.grid:  # what resizing to the same size gives, too
            return grid
        grid = grid.T.reshape(1, -1, self.grid, self.grid)  # (G*G)C -> 1CGG
        if torch.are_deterministic_algorithms_enabled():
            # The gradient of interpolate adds up in any order on a GPU; that of products does not.
            grid = _cubic(self.grid, height, grid) @ grid @ _cubic(self.grid, width, grid).T
        else:
            grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return grid.flatten(2)[0].T  # 1CHW -> (HW)C

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, channels_out, h, w)."""
        batch, channels, height, width = x.shape
        residual = self.connect(x)
        tokens = x.flatten(2).transpose(1, 2)  # BCHW -> B(HW)C
        tokens = tokens + self.position_embedding(height, width).to(tokens.dtype)
        q, k, v = (
            # B(HW)C -> B h (HW) C/h
            projection(tokens)
            .reshape(batch, height * width, self.num_heads, channels // self.num_heads)
            .transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = mixed.transpose(1, 2).reshape(batch, height * width, channels)  # -> B(HW)C
        dense = self.c_proj(mixed).transpose(1, 2).reshape(batch, -1, height, width)
        return F.relu(dense + residual)


def _cubic(side: int, wanted: int, like: Tensor) -> Tensor:
    """Weights that resize `side` values bicubically: (wanted, side), as interpolate has them."""
    units = torch.eye(side, dtype=like.dtype, device=like.device)[None, :, :, None]  # 1SS1
    found = F.interpolate(units, size=(wanted, 1), mode="bicubic", align_corners=False)
    return found[0, :, :, 0].T


class ImageEncoder(ModifiedResNet):
    """CLIP's modified ResNet that returns stages 2 to 4 (strides 8, 16, 32)."""

    def __init__(self, config: CrisConfig) -> None:
        super().__init__(
            layers=list(config.image_layers),
            output_dim=config.embed_dim,
            heads=config.image_heads,
            image_size=config.pool_grid * 32,
            width=config.image_width,
        )
        self.attnpool = DenseAttentionPool(
            config.pool_grid, config.image_width * 32, config.image_heads, config.embed_dim
        )
        self.init_parameters()

    def forward(self, image: Tensor) -> ImageFeatures:
        """(B, 3, S, S) normalised -> features."""
        x = self.layer1(self.stem(image))
        c3 = self.layer2(x)
        c4 = self.layer3(c3)
        c5 = self.attnpool(self.layer4(c4))
        return ImageFeatures(c3, c4, c5)


class Backbone(nn.Module):
    """CLIP: `visual` is the image encoder, everything else the text encoder.

    The parameters lie where CLIP keeps them, so that its own weights load by name.
    """

    def __init__(self, config: CrisConfig) -> None:
        super().__init__()
        self.visual = ImageEncoder(config)
        self.transformer = Transformer(
            config.text_width, config.text_layers, config.text_heads, act_layer=QuickGELU
        )
        self.token_embedding = nn.Embedding(config.vocab_size, config.text_width)
        self.positional_embedding = nn.Parameter(
            torch.empty(config.context_length, config.text_width)
        )
        self.ln_final = nn.LayerNorm(config.text_width)
        self.text_projection = nn.Parameter(torch.empty(config.text_width, config.embed_dim))
        # Not used by CRIS; part of CLIP and of every checkpoint.
        self.logit_scale = nn.Parameter(torch.tensor(100.0).log())
        self._init_text(config)

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """(B, 3, S, S) normalised -> features at three strides."""
        return cast(ImageFeatures, self.visual(image))

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        """(B, L) int64 tokens -> features of words and sentence; CRIS, section 3.1."""
        words = self.encode_words(tokens)
        # The end token has the largest id of the vocabulary.
        end = tokens.argmax(dim=1)
        rows = torch.arange(len(tokens), device=tokens.device)
        return TextFeatures(words, words[rows, end] @ self.text_projection, tokens == 0)

    def encode_words(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 tokens -> a feature for each (B, L, text_width), normed, not projected."""
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        causal = torch.full((length, length), float("-inf"), device=x.device).triu(1)
        words: Tensor = self.ln_final(self.transformer(x, attn_mask=causal))
        return words

    def _init_text(self, config: CrisConfig) -> None:
        """CLIP's initialisation, for training from nothing."""
        width = config.text_width
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        residual_std = width**-0.5 * (2 * config.text_layers) ** -0.5
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)
