"""What makes one CRIS differ from another: widths, depths, sizes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cris_deploy.errors import InputError
from cris_train.errors import CheckpointError

# CLIP's convention for both its ResNets and its text transformer: 64 channels to a head.
CLIP_HEAD_WIDTH = 64


@dataclass(frozen=True)
class CrisConfig:
    """Shape of a CRIS model. The defaults are the paper's RN50 on RefCOCO.

    Attributes:
        image_layers: Bottleneck blocks in the four stages of CLIP's modified ResNet.
        image_width: Channels after its stem; stages have 4, 8, 16 and 32 times as many.
        pool_grid: Side of the grid that the attention pooling's position embedding was trained on.
        embed_dim: Width of CLIP's joint space: C5 after pooling, and the sentence feature.
        text_width: Width of the text transformer and of word features.
        text_layers: Depth of the text transformer.
        text_heads: Heads of the text transformer.
        context_length: Text positions that are learnt (77 in CLIP).
        vocab_size: Byte-pair vocabulary (49408 in CLIP).
        neck_width: Channels of the fused features and of the decoder.
        decoder_layers: Cross-modal decoder layers, 0 to 4 in the paper's Table 1.
        decoder_heads: Heads of the decoder's attention.
        decoder_ffn: Hidden width of the decoder's feed-forward part.
        dropout: Dropout rate in the decoder (training only).
        contrastive: True for the text-to-pixel head, False for the ablation's plain convolution.
        input_size: Side S of the letterboxed square image, pixels; a multiple of 32.
        word_len: Tokens of an expression, padding included (17 RefCOCO and RefCOCO+, 22 G-Ref).
    """

    image_layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    image_width: int = 64
    pool_grid: int = 7
    embed_dim: int = 1024
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    context_length: int = 77
    vocab_size: int = 49408
    neck_width: int = 512
    decoder_layers: int = 3
    decoder_heads: int = 8
    decoder_ffn: int = 2048
    dropout: float = 0.1
    contrastive: bool = True
    input_size: int = 416
    word_len: int = 17

    def __post_init__(self) -> None:
        counts = (
            "image_width pool_grid embed_dim text_width text_layers text_heads context_length "
            "vocab_size neck_width decoder_heads decoder_ffn input_size word_len"
        )
        for name in counts.split():
            value = getattr(self, name)
            if not _is_int(value) or value < 1:
                raise InputError(f"{name} must be a positive whole number, not {value!r}")
        layers = self.image_layers
        if (
            not isinstance(layers, tuple)
            or len(layers) != 4
            or not all(_is_int(n) and n > 0 for n in layers)
        ):
            raise InputError(f"image_layers must be four positive whole numbers, not {layers!r}")
        if not _is_int(self.decoder_layers) or not 0 <= self.decoder_layers <= 12:
            raise InputError(f"decoder_layers must be 0 to 12, not {self.decoder_layers!r}")
        if not isinstance(self.contrastive, bool):
            raise InputError(f"contrastive must be true or false, not {self.contrastive!r}")
        if not isinstance(self.dropout, (int, float)) or not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout must be in [0, 1), not {self.dropout!r}")
        if self.input_size % 32:
            raise InputError(
                f"input_size must be a multiple of 32 (the image encoder's stride), "
                f"not {self.input_size}"
            )
        if not 3 <= self.word_len <= self.context_length:
            raise InputError(
                f"word_len must be 3 to {self.context_length} (the learnt text positions), "
                f"not {self.word_len}"
            )
        for width, heads in (
            ("text_width", "text_heads"),
            ("neck_width", "decoder_heads"),
        ):
            if getattr(self, width) % getattr(self, heads):
                raise InputError(f"{width} must be divisible by {heads}")
        if self.neck_width % 4:
            raise InputError("neck_width must be divisible by 4 (sin and cos for x and for y)")
        if self.image_width % 2:
            raise InputError("image_width must be even (the stem starts with half of it)")

    @property
    def mask_size(self) -> int:
        """Side of the logits: a quarter of the input."""
        return self.input_size // 4

    @property
    def image_heads(self) -> int:
        """Heads of the attention pooling over C5."""
        return max(1, self.image_width * 32 // CLIP_HEAD_WIDTH)

    @property
    def architecture(self) -> str:
        """CLIP's name of the image encoder, or its widths when it has none."""
        for name, known in (("RN50", CrisConfig()), ("RN101", CrisConfig.rn101())):
            if (self.image_layers, self.image_width) == (known.image_layers, known.image_width):
                return name
        return f"ResNet-{'-'.join(map(str, self.image_layers))}-w{self.image_width}"

    @classmethod
    def rn50(cls, **changes: Any) -> CrisConfig:
        """The paper's model on CLIP RN50."""
        return dataclasses.replace(cls(), **changes)

    @classmethod
    def rn101(cls, **changes: Any) -> CrisConfig:
        """The paper's model on CLIP RN101."""
        return dataclasses.replace(cls(image_layers=(3, 4, 23, 3), embed_dim=512), **changes)

    @classmethod
    def tiny(cls, **changes: Any) -> CrisConfig:
        """The smallest model with every part of the real one: for tests, seconds on one core."""
        return dataclasses.replace(
            cls(
                image_layers=(1, 1, 1, 1),
                image_width=8,
                pool_grid=2,
                embed_dim=32,
                text_width=32,
                text_layers=1,
                text_heads=2,
                neck_width=32,
                decoder_layers=1,
                decoder_heads=2,
                decoder_ffn=64,
                input_size=64,
            ),
            **changes,
        )

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]], **known: Any) -> CrisConfig:
        """Read a configuration off parameter shapes, as far as shapes can tell.

        Head counts follow CLIP's convention of 64 channels to a head and the paper's 8 in the
        decoder. Input size and word length leave no trace in the shapes: 416 and 17 unless `known`
        says otherwise.

        Args:
            shapes: Parameter name (no `module.` prefix) -> shape.
            **known: Fields to set whatever the shapes say.

        Raises:
            CheckpointError: parameters that every CRIS has are missing.
        """
        try:
            image_layers = tuple(
                _count(shapes, rf"backbone\.visual\.layer{stage}\.(\d+)\.")
                for stage in (1, 2, 3, 4)
            )
            text_width = shapes["backbone.positional_embedding"][1]
            decoder_layers = _count(shapes, r"decoder\.layers\.(\d+)\.")
            values: dict[str, Any] = {
                "image_layers": image_layers,
                "image_width": shapes["backbone.visual.conv1.weight"][0] * 2,
                "pool_grid": round(
                    (shapes["backbone.visual.attnpool.positional_embedding"][0] - 1) ** 0.5
                ),
                "embed_dim": shapes["backbone.text_projection"][1],
                "text_width": text_width,
                "text_layers": _count(shapes, r"backbone\.transformer\.resblocks\.(\d+)\."),
                "text_heads": max(1, text_width // CLIP_HEAD_WIDTH),
                "context_length": shapes["backbone.positional_embedding"][0],
                "vocab_size": shapes["backbone.token_embedding.weight"][0],
                "neck_width": shapes["neck.aggr.0.weight"][0],
                "decoder_layers": decoder_layers,
                "contrastive": "proj.txt.weight" in shapes,
            }
            if decoder_layers:
                values["decoder_ffn"] = shapes["decoder.layers.0.ffn.0.weight"][0]
            return cls(**{**values, **known})
        except (KeyError, IndexError) as error:
            raise CheckpointError(
                f"not a CRIS checkpoint: parameter {error} is missing or has another rank"
            ) from error
        except InputError as error:
            raise CheckpointError(f"the shapes are not those of a CRIS model: {error}") from error


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(shapes: Mapping[str, Sequence[int]], pattern: str) -> int:
    """How many distinct indices the group in `pattern` takes among the parameter names."""
    return len({match[1] for match in map(re.compile(pattern).match, shapes) if match})
