"""The vision-language decoder: pixels attend to pixels, then to words (CRIS, section 3.3)."""

from torch import Tensor, nn

from cris_train.model.backbone import TextFeatures
from cris_train.model.config import CrisConfig
from cris_train.model.positions import pixels_code, words_code


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and a feed-forward part, each added to the pixels.

    Every branch is normed on both sides: before it (norm1 to norm3) and, for the attentions, after
    it (self_attn_norm, cross_attn_norm).
    """

    def __init__(self, config: CrisConfig) -> None:
        super().__init__()
        width, heads, rate = config.neck_width, config.decoder_heads, config.dropout
        self.self_attn = nn.MultiheadAttention(width, heads, dropout=rate, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(
            width,
            heads,
            dropout=rate,
            batch_first=True,
            # None keeps the packed projection of the reference's layout where the widths agree.
            kdim=None if config.text_width == width else config.text_width,
            vdim=None if config.text_width == width else config.text_width,
        )
        self.self_attn_norm = nn.LayerNorm(width)
        self.cross_attn_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.decoder_ffn),
            nn.ReLU(),
            nn.Dropout(rate),
            nn.LayerNorm(config.decoder_ffn),
            nn.Linear(config.decoder_ffn, width),
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(rate)

    def forward(
        self, pixels: Tensor, words: Tensor, padding: Tensor, pixels_pos: Tensor, words_pos: Tensor
    ) -> Tensor:
        """Pixels (B, HW, W), words (B, L, T), padding (B, L) bool -> pixels (B, HW, W)."""
        x = self.norm1(pixels)
        q = x + pixels_pos
        x, _ = self.self_attn(q, q, x, need_weights=False)
        pixels = pixels + self.dropout(self.self_attn_norm(x))

        x, _ = self.multihead_attn(
            self.norm2(pixels) + pixels_pos,
            words + words_pos,
            words,
            key_padding_mask=padding,
            need_weights=False,
        )
        pixels = pixels + self.dropout(self.cross_attn_norm(x))

        out: Tensor = pixels + self.dropout(self.ffn(self.norm3(pixels)))
        return out


class Decoder(nn.Module):
    """`decoder_layers` layers and a last norm over the flattened fused map."""

    def __init__(self, config: CrisConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.neck_width)

    def forward(self, fused: Tensor, text: TextFeatures) -> Tensor:
        """Fused map (B, W, h, w) and text -> map of the same shape."""
        batch, width, height, length = *fused.shape[:3], text.words.shape[1]
        pixels_pos = pixels_code(height, fused.shape[3], width, fused.device).to(fused)
        words_pos = words_code(length, text.words.shape[2], fused.device).to(fused)
        pixels = fused.flatten(2).transpose(1, 2)  # BWhw -> B(hw)W
        for layer in self.layers:
            pixels = layer(pixels, text.words, text.padding, pixels_pos, words_pos)
        pixels = self.norm(pixels)
        decoded: Tensor = pixels.transpose(1, 2).reshape(batch, width, height, -1)  # -> BWhw
        return decoded
