"""The third stage: features of expressions and images become logits of masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cris_export.graph import fold
from cris_export.graph.doubling import Doublings
from cris_train.model import Cris, CrisConfig
from cris_train.model.decoder import DecoderLayer
from cris_train.model.neck import CoordConv
from cris_train.model.positions import pixels_code, words_code
from cris_train.model.projector import shift_and_add

# Added to the scores of padded words: exp() of it is 0 in float32, and float16 can hold it.
MASKED = -30000.0


class MaskStage(nn.Module):
    """Features of n expressions, and of one image or of n -> n masks' logits."""

    gate_scale: Tensor
    f5_shift: Tensor
    where: Tensor

    def __init__(self, model: Cris) -> None:
        super().__init__()
        config, neck = model.config, model.neck
        width, grid = config.neck_width, config.input_size // 16
        self.config: CrisConfig = config
        self.gate = fold.fold_linear(neck.txt_proj[0], neck.txt_proj[1])
        norm = fold.batch_norm_affine(neck.norm_layer[0])
        self.register_buffer("gate_scale", norm.scale.float())
        self.register_buffer("f5_shift", norm.shift.float()[None, :, None, None])
        _, self.f4_half = fold.split_block(neck.f2_cat, width)
        _, self.f3_half = fold.split_block(neck.f3_cat, width // 2)
        self.proj5 = fold.fold_block(neck.f4_proj5)
        self.proj4 = fold.fold_block(neck.f4_proj4)
        self.proj3 = fold.fold_block(neck.f4_proj3)
        aggregate = fold.fold_block(neck.aggr)
        self.aggr3, self.aggr4, self.aggr5 = fold.split_conv1x1(aggregate, [width] * 3)
        first, second = neck.coordconv
        assert isinstance(first, CoordConv)
        assert isinstance(second, nn.Sequential)
        self.coord1, where = fold.split_coordinates(fold.fold_block(first.conv1), grid, grid)
        self.register_buffer("where", where)
        self.coord2 = fold.fold_block(second)
        self.layers = nn.ModuleList()
        if model.decoder is not None:
            for layer in model.decoder.layers:
                assert isinstance(layer, DecoderLayer)
                self.layers.append(FoldedLayer(layer, config))
            self.norm = model.decoder.norm
        self.up, vis1, _, vis2, _ = model.proj.vis
        assert isinstance(vis1, nn.Sequential)
        assert isinstance(vis2, nn.Sequential)
        self.doublings = Doublings(fold.fold_block(vis1), fold.fold_block(vis2), grid)
        self.head = FilterHead(model) if config.contrastive else PlainHead(model)

    def forward(
        self, words: Tensor, sentence: Tensor, padding: Tensor, f3: Tensor, f4: Tensor, f5: Tensor
    ) -> Tensor:
        """Features -> logits.

        Args:
            words: (n, L, T)
            sentence: (n, E)
            padding: (n, L) bool
            f3: (1 or n, W, S/16, S/16)
            f4: (1 or n, W, S/16, S/16)
            f5: (1 or n, 2W, S/32, S/32)

        Returns:
            (n, 1, S/4, S/4)
        """
        fused = self._fuse(sentence, f3, f4, f5)
        pixels = fused.flatten(2).transpose(1, 2)  # nWhw -> n(hw)W
        if len(self.layers):
            pixels = self._decode(pixels, words, padding)
        logits: Tensor = self.head(self.doublings(pixels), sentence)
        return logits

    def _fuse(self, sentence: Tensor, f3: Tensor, f4: Tensor, f5: Tensor) -> Tensor:
        """The neck from where the sentence enters; 1x1 convolutions run before upsampling."""
        gate = F.relu(self.gate(sentence)) * self.gate_scale  # (n, 2W)
        f5 = F.relu(f5 * gate[:, :, None, None] + self.f5_shift)
        f4 = F.relu(f4 + self.up(self.f4_half(f5)))
        f3 = F.relu(f3 + self.f3_half(f4))
        fused = self.aggr3(F.relu(self.proj3(f3))) + self.aggr4(F.relu(self.proj4(f4)))
        fused = F.relu(fused + self.up(self.aggr5(F.relu(self.proj5(f5)))))
        fused = F.relu(self.coord1(fused) + self.where)
        return F.relu(self.coord2(fused))

    def _decode(self, pixels: Tensor, words: Tensor, padding: Tensor) -> Tensor:
        ignore = torch.where(padding, MASKED, 0.0)[:, None, None, :]  # (n, 1, 1, L)
        for layer in self.layers:
            pixels = layer(pixels, words, ignore)
        decoded: Tensor = self.norm(pixels)
        return decoded


class FoldedLayer(nn.Module):
    """A decoder layer for fixed positions: the codes are in the biases of the attentions."""

    def __init__(self, layer: DecoderLayer, config: CrisConfig) -> None:
        super().__init__()
        grid = config.input_size // 16
        pixels = pixels_code(grid, grid, config.neck_width)
        words = words_code(config.word_len, config.text_width)
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3
        self.self_attn = FoldedAttention(layer.self_attn, pixels, pixels)
        self.self_attn_norm = layer.self_attn_norm
        self.cross_attn = FoldedAttention(layer.multihead_attn, pixels, words)
        self.cross_attn_norm = layer.cross_attn_norm
        self.ffn = layer.ffn

    def forward(self, pixels: Tensor, words: Tensor, ignore: Tensor) -> Tensor:
        """Pixels (n, HW, W), words (n, L, T), scores' offset (n, 1, 1, L) -> pixels."""
        x = self.norm1(pixels)
        pixels = pixels + self.self_attn_norm(self.self_attn(x, x, None))
        x = self.norm2(pixels)
        pixels = pixels + self.cross_attn_norm(self.cross_attn(x, words, ignore))
        out: Tensor = pixels + self.ffn(self.norm3(pixels))
        return out


class FoldedAttention(nn.Module):
    """Multi-head attention with constant position codes folded into its biases."""

    query: Tensor
    query_bias: Tensor
    key: Tensor
    key_bias: Tensor
    value: Tensor
    value_bias: Tensor

    def __init__(self, attention: nn.MultiheadAttention, query: Tensor, key: Tensor) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.out = attention.out_proj
        for name, value in fold.fold_positions(attention, query, key)._asdict().items():
            # Linear layers in ONNX multiply from the right: store them so.
            self.register_buffer(name, value.T.contiguous() if "bias" not in name else value)

    def forward(self, x: Tensor, memory: Tensor, ignore: Tensor | None) -> Tensor:
        """Queries from x (n, Nq, W), keys and values from memory (n, Nk, C) -> (n, Nq, W)."""
        q = self._heads(x @ self.query + self.query_bias)
        k = self._heads(memory @ self.key + self.key_bias)
        v = self._heads(memory @ self.value + self.value_bias)
        scores = q @ k.transpose(2, 3)  # (n, heads, Nq, Nk)
        if ignore is not None:
            scores = scores + ignore
        mixed = scores.softmax(dim=3) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # n h N d -> n N (hd)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(n, N, W) -> (n, heads, N, W / heads)."""
        head_width = x.shape[2] // self.heads
        return x.reshape(-1, x.shape[1], self.heads, head_width).transpose(1, 2)


class FilterHead(nn.Module):
    """The text-to-pixel head, with the projector's last 1x1 convolution folded into the filter.

    The convolution is linear, so `taps @ (W y + b) = (taps W) @ y + taps b`: the filter is moved
    through W once per expression instead of W being applied at every pixel. The constant is added
    before the zero-padded shift, where the reference has it.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, model: Cris) -> None:
        super().__init__()
        last = model.proj.last
        assert last.bias is not None
        self.size = model.config.mask_size
        self.channels = last.weight.shape[0]
        self.txt = model.proj.txt
        self.register_buffer("weight", last.weight[:, :, 0, 0].contiguous())
        self.register_buffer("bias", last.bias[:, None].contiguous())

    def forward(self, pixels: Tensor, sentence: Tensor) -> Tensor:
        """Pixels (n, C, h * w) before the last convolution, sentence (n, E) -> (n, 1, h, w)."""
        filters = self.txt(sentence)  # (n, C * 9 + 1)
        taps = filters[:, :-1].reshape(-1, self.channels, 9).transpose(1, 2)  # n9C
        maps = (taps @ self.weight) @ pixels + taps @ self.bias  # n9(hw)
        maps = maps.reshape(-1, 9, self.size, self.size)
        logits: Tensor = shift_and_add(maps) + filters[:, -1, None, None, None]
        return logits


class PlainHead(nn.Module):
    """The ablation without a contrastive head: a 1x1 and a 3x3 convolution."""

    def __init__(self, model: Cris) -> None:
        super().__init__()
        self.size = model.config.mask_size
        self.last, self.out = model.proj.last, model.proj.out

    def forward(self, pixels: Tensor, sentence: Tensor) -> Tensor:
        """Pixels (n, C, h * w) -> (n, 1, h, w); the sentence has no say here."""
        pixels = pixels.reshape(-1, pixels.shape[1], self.size, self.size)
        logits: Tensor = self.out(self.last(pixels))
        return logits
