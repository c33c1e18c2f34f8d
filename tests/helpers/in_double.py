"""cris-train in float64 (`python -m`), where the order of a sum hardly shows."""

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
import torch

from cris_train.data.batch import Batch, PackedBatch
from cris_train.evaluation.segmenters import TorchSegmenter


def patch(patcher: pytest.MonkeyPatch) -> None:
    """Weights, pictures and loss become float64; masks, which are not looked at, empty."""
    unpack = PackedBatch.unpack

    def in_double(self: PackedBatch, device: torch.device | str = "cpu") -> Batch:
        batch = unpack(self, device)
        return dataclasses.replace(batch, image=batch.image.double(), target=batch.target.double())

    def no_masks(self: TorchSegmenter, image: Any, expressions: Any) -> list[Any]:
        return [np.zeros((image.height, image.width), np.bool_) for _ in expressions]

    patcher.setattr(PackedBatch, "unpack", in_double)
    patcher.setattr(TorchSegmenter, "__call__", no_masks)
    patcher.setattr(torch.Tensor, "float", torch.Tensor.double)


if __name__ == "__main__":
    from cris_train.cli.train import main

    torch.set_default_dtype(torch.float64)
    patch(pytest.MonkeyPatch())
    sys.exit(main())
