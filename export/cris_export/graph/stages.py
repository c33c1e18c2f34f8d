"""The deployed model: CRIS in three stages, each a module that is traced to one graph.

    image ──▶ ImageStage ──f3, f4, f5──────────────────┐
    tokens ─▶ TextStage ───words, sentence, padding──▶ MaskStage ──▶ logits

The cut is where the expression first meets the image: everything that depends on the image alone
lies in the first stage, so n expressions on one image pay for it once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cris_export.graph import fold
from cris_export.graph.mask_decoder import MaskStage
from cris_train.model import Cris
from cris_train.model.backbone import Backbone


class Stages(NamedTuple):
    """The three stages of one model, folded, in evaluation mode."""

    image_encoder: ImageStage
    text_encoder: TextStage
    mask_decoder: MaskStage


def build_stages(model: Cris) -> Stages:
    """Cut a model in three and fold what is constant. The model itself is left as it is."""
    with torch.no_grad():
        stages = Stages(ImageStage(model), TextStage(model), MaskStage(model))
    for stage in stages:
        stage.eval().requires_grad_(False)
    return stages


class ImageStage(nn.Module):
    """Image -> all that depends on the image alone.

    Beyond the image encoder and the neck's visual projections, that is the visual half of `f2_cat`
    and `f3_cat`: a 1x1 convolution of a concatenation is a sum of two.
    """

    def __init__(self, model: Cris) -> None:
        super().__init__()
        neck, width = model.neck, model.config.neck_width
        self.encoder = fold.fold_image_encoder(model.backbone.visual, model.config.input_size // 32)
        self.f5 = fold.fold_block(neck.f1_v_proj)
        self.f4 = fold.fold_block(neck.f2_v_proj)
        self.f3 = fold.fold_block(neck.f3_v_proj)
        self.f4_half, _ = fold.split_block(neck.f2_cat, width)
        self.f3_half, _ = fold.split_block(neck.f3_cat, width // 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, S, S) -> f3 (B, W, S/16, S/16), f4 (same), f5 (B, 2W, S/32, S/32)."""
        c3, c4, c5 = self.encoder(image)
        f5 = F.relu(self.f5(c5))
        f4 = self.f4_half(F.relu(self.f4(c4)))
        f3 = self.f3_half(F.avg_pool2d(F.relu(self.f3(c3)), 2))
        return f3, f4, f5


class TextStage(nn.Module):
    """Tokens -> features of words and sentence, and which positions are padding."""

    def __init__(self, model: Cris) -> None:
        super().__init__()
        backbone = model.backbone
        self.token_embedding = backbone.token_embedding
        self.transformer = backbone.transformer
        self.ln_final = backbone.ln_final
        self.positional_embedding = backbone.positional_embedding
        self.text_projection = backbone.text_projection

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L) int64 -> words (B, L, T), sentence (B, E), padding (B, L) bool."""
        # The same arithmetic on the same parameters; only the image encoder is left behind.
        words = Backbone.encode_words(self, tokens)  # type: ignore[arg-type]
        return words, take_end(words, tokens) @ self.text_projection, tokens == 0


def take_end(words: Tensor, tokens: Tensor) -> Tensor:
    """Words (B, L, T) at the largest of the tokens (B, L) int64, the first one of equals -> (B, T).

    The end token has the largest id, and a text that spells it out has it twice. ONNX Runtime's
    CUDA provider has no ArgMax of integers, and before 1.31 its GatherND replays a captured copy
    from freed memory: so the position is found by comparison, with earlier positions ahead among
    equals, and taken by a product, which is exact, as all other summands are zero.
    """
    length = tokens.shape[1]
    # Below 2^24 for 49,408 tokens and 77 positions: kernels that compare as float32 are exact, too.
    rank = tokens * length + torch.arange(length - 1, -1, -1, device=tokens.device)
    end = rank == rank.amax(dim=1, keepdim=True)
    return (end[:, None].to(words.dtype) @ words).squeeze(1)  # (B, 1, L) @ (B, L, T)
