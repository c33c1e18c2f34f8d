"""CRIS, whole: CLIP-Driven Referring Image Segmentation (Wang et al., CVPR 2022), figure 2."""

from torch import Tensor, nn

from cris_train.model.backbone import Backbone, ImageFeatures
from cris_train.model.config import CrisConfig
from cris_train.model.decoder import Decoder
from cris_train.model.neck import Neck
from cris_train.model.projector import Projector


class Cris(nn.Module):
    """An image and a referring expression in, the logits of that object's mask out.

    Parameter names and shapes are those of the reference implementation's checkpoints.
    """

    def __init__(self, config: CrisConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.neck = Neck(config)
        self.decoder = Decoder(config) if config.decoder_layers else None
        self.proj = Projector(config)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """One mask per expression; an image may have several expressions.

        Args:
            image: (B, 3, S, S) float, letterboxed and normalised; S a multiple of 32.
            tokens: (B * k, L) int64, the k expressions of an image in a row; start token first,
                padded with 0 after the end token.

        Returns:
            (B * k, 1, S/4, S/4) logits; sigmoid gives the probability of belonging to the object.
        """
        visual = self.backbone.encode_image(image)
        if len(tokens) != len(image):  # the image is encoded once, whatever is said about it
            each = len(tokens) // len(image)
            visual = ImageFeatures(*(level.repeat_interleave(each, dim=0) for level in visual))
        text = self.backbone.encode_text(tokens)
        fused = self.neck(visual, text.sentence)
        if self.decoder is not None:
            fused = self.decoder(fused, text)
        logits: Tensor = self.proj(fused, text.sentence)
        return logits
