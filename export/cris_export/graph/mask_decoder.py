"""The third stage: features of expressions and images become logits of masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cris_export.graph import fold
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
        self.vis1 = UpsampledConv(fold.fold_block(vis1))
        self.vis2 = UpsampledConv(fold.fold_block(vis2))
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
        if len(self.layers):
            fused = self._decode(fused, words, padding)
        pixels = F.relu(self.vis2(F.relu(self.vis1(fused))))
        logits: Tensor = self.head(pixels, sentence)
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

    def _decode(self, fused: Tensor, words: Tensor, padding: Tensor) -> Tensor:
        width, grid = self.config.neck_width, self.config.input_size // 16
        pixels = fused.flatten(2).transpose(1, 2)  # nWhw -> n(hw)W
        ignore = torch.where(padding, MASKED, 0.0)[:, None, None, :]  # (n, 1, 1, L)
        for layer in self.layers:
            pixels = layer(pixels, words, ignore)
        pixels = self.norm(pixels)
        decoded: Tensor = pixels.transpose(1, 2).reshape(-1, width, grid, grid)  # -> nWhw
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
        """Pixels (n, C, h, w) before the last convolution, sentence (n, E) -> (n, 1, h, w)."""
        filters = self.txt(sentence)  # (n, C * 9 + 1)
        taps = filters[:, :-1].reshape(-1, self.channels, 9).transpose(1, 2)  # n9C
        maps = (taps @ self.weight) @ pixels.flatten(2) + taps @ self.bias  # n9(hw)
        maps = maps.reshape(-1, 9, self.size, self.size)
        logits: Tensor = shift_and_add(maps) + filters[:, -1, None, None, None]
        return logits


class PlainHead(nn.Module):
    """The ablation without a contrastive head: a 1x1 and a 3x3 convolution."""

    def __init__(self, model: Cris) -> None:
        super().__init__()
        self.last, self.out = model.proj.last, model.proj.out

    def forward(self, pixels: Tensor, sentence: Tensor) -> Tensor:
        """Pixels (n, C, h, w) -> (n, 1, h, w); the sentence has no say here."""
        logits: Tensor = self.out(self.last(pixels))
        return logits
