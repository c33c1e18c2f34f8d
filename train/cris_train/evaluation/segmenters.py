"""What can be measured: a model in PyTorch, and an engine on a bundle, behind one call."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from open_clip.tokenizer import SimpleTokenizer

from cris_deploy.pixels import image as images
from cris_deploy.pixels.mask import mask_from_logits
from cris_deploy.words.tokenizer import Tokenizer, TruncationWarning
from cris_train.data.dataset import read_picture
from cris_train.data.refer import ReferImage
from cris_train.model import Cris

if TYPE_CHECKING:
    from cris_deploy.engine import Engine
    from cris_deploy.results.segmentation import Segmentation

# A picture's expressions are run together, in parts of this many.
CHUNK = 16


class TorchSegmenter:
    """A model in PyTorch, eager, through deployment's letterbox, tokenizer and mask step.

    Args:
        model: In evaluation mode, on `device`.
        threshold: Probability above which a pixel belongs to the mask.
        device: Where the model is.
        autocast: Mixed precision in this type; None for float32.
    """

    def __init__(
        self,
        model: Cris,
        *,
        threshold: float,
        device: torch.device | str = "cpu",
        autocast: torch.dtype | None = None,
    ) -> None:
        self._model = model
        self._threshold = threshold
        self._device = torch.device(device)
        self._autocast = autocast
        clip = SimpleTokenizer()
        ranked = sorted(clip.bpe_ranks, key=clip.bpe_ranks.__getitem__)
        self._tokenizer = Tokenizer.from_vocabulary(clip.encoder, ranked, model.config.word_len)

    def __call__(
        self, image: ReferImage, expressions: Sequence[str]
    ) -> list[npt.NDArray[np.bool_]]:
        """Masks (H, W) bool at image size, one for each expression.

        Raises:
            ImageError: the picture cannot be read.
            DataError: it has another size than the data set says.
            ExpressionError: an expression has no words.
        """
        size = self._model.config.input_size
        return [
            mask_from_logits(low, image.height, image.width, size, self._threshold)
            for low in self._logits(image, expressions)
        ]

    def scores(self, image: ReferImage, expressions: Sequence[str]) -> list[float]:
        """The highest probability of any pixel, for each expression; errors as for masks."""
        return [_sigmoid(float(low.max())) for low in self._logits(image, expressions)]

    def _logits(self, image: ReferImage, expressions: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, S/4, S/4)."""
        size = self._model.config.input_size
        square = images.normalise(images.letterbox(read_picture(image), size))
        pixels = torch.from_numpy(square)[None].to(self._device)  # (1, 3, S, S)
        tokens = torch.from_numpy(self._tokenizer.encode(expressions).tokens).to(self._device)
        kind = self._device.type
        with (
            torch.inference_mode(),
            torch.autocast(kind, self._autocast, enabled=self._autocast is not None),
        ):
            parts = [self._model(pixels, part)[:, 0].float() for part in torch.split(tokens, CHUNK)]
            return np.asarray(torch.cat(parts).cpu().numpy(), np.float32)


class EngineSegmenter:
    """An engine on a bundle, as a production process runs it.

    Args:
        engine: Closing it is its owner's affair.
        threshold: Probability above which a pixel belongs to the mask; None for the bundle's own.
    """

    def __init__(self, engine: Engine, *, threshold: float | None = None) -> None:
        self._engine = engine
        model = engine.info.model
        self._threshold = None if threshold == model.threshold else threshold
        self._input_size = model.input_size

    def __call__(
        self, image: ReferImage, expressions: Sequence[str]
    ) -> list[npt.NDArray[np.bool_]]:
        """Masks (H, W) bool at image size, one for each expression.

        Raises:
            ImageError: the picture cannot be read.
            DataError: it has another size than the data set says.
            ExpressionError: an expression has no words.
            BackendError: the runtime failed.
        """
        found = self._found(image, expressions)
        if self._threshold is None:
            return [result.mask for result in found]
        return [
            mask_from_logits(
                result.logits, image.height, image.width, self._input_size, self._threshold
            )
            for result in found
        ]

    def scores(self, image: ReferImage, expressions: Sequence[str]) -> list[float]:
        """The highest probability of any pixel, for each expression; errors as for masks."""
        return [result.score for result in self._found(image, expressions)]

    def _found(self, image: ReferImage, expressions: Sequence[str]) -> list[Segmentation]:
        with warnings.catch_warnings():
            # Benchmarks cut long expressions by rule; one warning for each would be thousands.
            warnings.simplefilter("ignore", TruncationWarning)
            return self._engine.segment(read_picture(image), list(expressions))


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-max(logit, -700.0)))  # below, exp overflows
