"""Arithmetic in PyTorch."""

from collections.abc import Mapping
from typing import Final

import torch

from cris_deploy.execution.backends import Compute

AUTOCAST: Final[Mapping[Compute, torch.dtype | None]] = {
    Compute.FP32: None,
    Compute.BF16: torch.bfloat16,
    Compute.FP16: torch.float16,
}
"""What a model in PyTorch can compute in -> the type of its mixed precision, None for float32."""
