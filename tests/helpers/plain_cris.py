"""CRIS and Adam written out: a function of named tensors, without this project's model or torch.nn.

From the facts of the paper and of its implementation: what is added to what, in which order, with
which normalisation. One batch in training, without dropout; 64 channels to a head in CLIP's parts.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from cris_train.model import CrisConfig

Named = Mapping[str, Tensor]


def logits(p: Named, config: CrisConfig, image: Tensor, tokens: Tensor) -> Tensor:
    """(B, 3, S, S) and (B, L) -> (B, 1, S/4, S/4), batch norms over this batch."""
    c3, c4, c5 = _image(p, config, image)
    words, sentence = _text(p, config, tokens)
    fused = _neck(p, c3, c4, c5, sentence)
    return _projector(p, _decoder(p, config, fused, words, tokens == 0), sentence)


def cross_entropy(z: Tensor, target: Tensor) -> Tensor:
    """Mean over all pixels of -t log s - (1 - t) log(1 - s), s = sigmoid(z)."""
    s = torch.sigmoid(z)
    return -(target * torch.log(s) + (1 - target) * torch.log(1 - s)).mean()


class Adam:
    """Kingma and Ba's algorithm 1, with PyTorch's constants and a rate for every name."""

    def __init__(self) -> None:
        self.steps = 0
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}

    def step(self, p: Named, gradients: Named, rates: Mapping[str, float]) -> dict[str, Tensor]:
        """Parameters after one more step."""
        self.steps += 1
        after = dict(p)
        for name, g in gradients.items():
            m, v = self.first.get(name, 0 * g), self.second.get(name, 0 * g)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            self.first[name], self.second[name] = m, v
            unbiased = m / (1 - 0.9**self.steps), v / (1 - 0.999**self.steps)
            after[name] = p[name] - rates[name] * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        return after


def _image(p: Named, config: CrisConfig, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    at = "backbone.visual."
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = _conv(x, p[f"{at}conv{number}.weight"], stride=stride)
        x = _batch_norm(p, f"{at}bn{number}", x).relu()
    x = _average(x)
    stages = []
    for stage, blocks in enumerate(config.image_layers, start=1):
        for block in range(blocks):
            x = _bottleneck(p, f"{at}layer{stage}.{block}.", x, stage > 1 and block == 0)
        stages.append(x)
    return stages[1], stages[2], _pool(p, f"{at}attnpool.", config, x)


def _bottleneck(p: Named, at: str, x: Tensor, halved: bool) -> Tensor:
    y = _batch_norm(p, f"{at}bn1", _conv(x, p[f"{at}conv1.weight"])).relu()
    y = _batch_norm(p, f"{at}bn2", _conv(y, p[f"{at}conv2.weight"])).relu()
    y = _average(y) if halved else y
    y = _batch_norm(p, f"{at}bn3", _conv(y, p[f"{at}conv3.weight"]))
    if f"{at}downsample.0.weight" in p:
        x = _average(x) if halved else x
        x = _batch_norm(p, f"{at}downsample.1", _conv(x, p[f"{at}downsample.0.weight"]))
    return (x + y).relu()


def _pool(p: Named, at: str, config: CrisConfig, x: Tensor) -> Tensor:
    """CLIP's attention pooling, dense: no class token, its positions resized, a 1x1 beside it."""
    height, width = x.shape[2:]
    beside = _batch_norm(p, f"{at}connect.1", _conv(x, p[f"{at}connect.0.weight"]))
    side = config.pool_grid
    grid = p[f"{at}positional_embedding"][1:].T.reshape(1, -1, side, side)
    resized = torch.nn.functional.interpolate(
        grid, (height, width), mode="bicubic", align_corners=False
    )
    rows = (x + resized).flatten(2).transpose(1, 2)
    q, k, v = (_linear(p, f"{at}{name}_proj", rows) for name in "qkv")
    mixed = _linear(p, f"{at}c_proj", _attend(q, k, v, config.image_heads))
    return (mixed.transpose(1, 2).unflatten(2, (height, width)) + beside).relu()


def _text(p: Named, config: CrisConfig, tokens: Tensor) -> tuple[Tensor, Tensor]:
    length = tokens.shape[1]
    x = p["backbone.token_embedding.weight"][tokens]
    x = x + p["backbone.positional_embedding"][:length]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(config.text_layers):
        at = f"backbone.transformer.resblocks.{layer}."
        y = _layer_norm(p, f"{at}ln_1", x)
        x = x + _attention(p, f"{at}attn.", y, y, y, config.text_heads, later)
        y = _linear(p, f"{at}mlp.c_fc", _layer_norm(p, f"{at}ln_2", x))
        x = x + _linear(p, f"{at}mlp.c_proj", y * torch.sigmoid(1.702 * y))
    words = _layer_norm(p, "backbone.ln_final", x)
    last = tokens.argmax(1)
    ends = torch.stack([row[place] for row, place in zip(words, last, strict=True)])
    return words, ends @ p["backbone.text_projection"]


def _neck(p: Named, c3: Tensor, c4: Tensor, c5: Tensor, sentence: Tensor) -> Tensor:
    gate = sentence @ p["neck.txt_proj.0.weight"].T
    gate = _batch_norm(p, "neck.txt_proj.1", gate).relu()[:, :, None, None]
    f5 = _batch_norm(p, "neck.norm_layer.0", _unit(p, "neck.f1_v_proj", c5) * gate).relu()
    f4 = torch.cat([_unit(p, "neck.f2_v_proj", c4), _double(f5)], 1)
    f4 = _unit(p, "neck.f2_cat", f4)
    f3 = torch.cat([_average(_unit(p, "neck.f3_v_proj", c3)), f4], 1)
    f3 = _unit(p, "neck.f3_cat", f3)
    parts = [_unit(p, "neck.f4_proj3", f3), _unit(p, "neck.f4_proj4", f4)]
    parts.append(_double(_unit(p, "neck.f4_proj5", f5)))
    fq = _unit(p, "neck.aggr", torch.cat(parts, 1))
    count, _, height, width = fq.shape
    x = torch.linspace(-1, 1, width).to(fq).expand(count, 1, height, width)
    y = torch.linspace(-1, 1, height).to(fq)[:, None].expand(count, 1, height, width)
    fq = _unit(p, "neck.coordconv.0.conv1", torch.cat([fq, x, y], 1))
    return _unit(p, "neck.coordconv.1", fq)


def _decoder(p: Named, config: CrisConfig, fused: Tensor, words: Tensor, padding: Tensor) -> Tensor:
    height, width = fused.shape[2:]
    half = fused.shape[1] // 2
    across = sines(width, half).to(fused).repeat(height, 1)
    down = sines(height, half).to(fused).repeat_interleave(width, 0)
    where = torch.cat([across, down], 1)
    order = sines(words.shape[1], words.shape[2]).to(fused)
    v = fused.flatten(2).transpose(1, 2)
    for layer in range(config.decoder_layers):
        at, heads = f"decoder.layers.{layer}.", config.decoder_heads
        y = _layer_norm(p, f"{at}norm1", v)
        y = _attention(p, f"{at}self_attn.", y + where, y + where, y, heads)
        v = v + _layer_norm(p, f"{at}self_attn_norm", y)
        y = _layer_norm(p, f"{at}norm2", v) + where
        hidden = padding[:, None, None, :]
        y = _attention(p, f"{at}multihead_attn.", y, words + order, words, heads, hidden)
        v = v + _layer_norm(p, f"{at}cross_attn_norm", y)
        y = _linear(p, f"{at}ffn.0", _layer_norm(p, f"{at}norm3", v)).relu()
        v = v + _linear(p, f"{at}ffn.4", _layer_norm(p, f"{at}ffn.3", y))
    v = _layer_norm(p, "decoder.norm", v)
    return v.transpose(1, 2).unflatten(2, (height, width))


def _projector(p: Named, fused: Tensor, sentence: Tensor) -> Tensor:
    x = _unit(p, "proj.vis.1", _double(fused))
    x = _unit(p, "proj.vis.3", _double(x))
    x = _conv(x, p["proj.vis.4.weight"]) + p["proj.vis.4.bias"][:, None, None]
    filters = _linear(p, "proj.txt", sentence)
    maps = []
    for pixels, own in zip(x, filters, strict=True):  # each sample has a convolution of its own
        kernel = own[:-1].reshape(1, -1, 3, 3)
        maps.append(_conv(pixels[None], kernel) + own[-1])
    return torch.cat(maps)


def sines(length: int, width: int) -> Tensor:
    """(length, width): sine in even channels, cosine in odd ones."""
    code = torch.zeros(length, width)
    for place in range(length):
        for pair in range(width // 2):
            angle = place / 10000 ** (2 * pair / width)
            code[place, 2 * pair], code[place, 2 * pair + 1] = math.sin(angle), math.cos(angle)
    return code


def _attention(
    p: Named, at: str, q: Tensor, k: Tensor, v: Tensor, heads: int, hidden: Tensor | None = None
) -> Tensor:
    weights = p[f"{at}in_proj_weight"].chunk(3)
    biases = p[f"{at}in_proj_bias"].chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((q, k, v), weights, biases, strict=True))
    return _linear(p, f"{at}out_proj", _attend(q, k, v, heads, hidden))


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, hidden: Tensor | None = None) -> Tensor:
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    if hidden is not None:
        scores = scores.masked_fill(hidden, -math.inf)
    return (scores.softmax(3) @ v).transpose(1, 2).flatten(2)


def _unit(p: Named, at: str, x: Tensor) -> Tensor:
    return _batch_norm(p, f"{at}.1", _conv(x, p[f"{at}.0.weight"])).relu()


def _conv(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    return torch.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)


def _linear(p: Named, at: str, x: Tensor) -> Tensor:
    return x @ p[f"{at}.weight"].T + p[f"{at}.bias"]


def _batch_norm(p: Named, at: str, x: Tensor) -> Tensor:
    others = [d for d in range(x.ndim) if d != 1]
    centred = x - x.mean(others, keepdim=True)
    scaled = centred / (centred.square().mean(others, keepdim=True) + 1e-5).sqrt()
    shape = [-1] + [1] * (x.ndim - 2)
    return scaled * p[f"{at}.weight"].reshape(shape) + p[f"{at}.bias"].reshape(shape)


def _layer_norm(p: Named, at: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * p[f"{at}.weight"] + p[f"{at}.bias"]


def _average(x: Tensor) -> Tensor:
    """Mean of 2x2."""
    return x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))


def _double(x: Tensor) -> Tensor:
    """Twice the size, bilinear, pixel centres where they were."""
    for axis in (2, 3):
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
        before = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        after = torch.cat([x.narrow(axis, 1, x.shape[axis] - 1), last], axis)
        pair = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pair.flatten(axis, axis + 1)
    return x
