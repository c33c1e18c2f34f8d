"""Small random models whose every parameter matters."""

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def randomised(module: Module, seed: int = 0) -> Module:
    """Give norms and biases random values, so that forgetting one shows; evaluation mode.

    As initialised, batch norms are the identity and the last of each residual block is zero: a
    wrong rewrite of either would pass every comparison.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        leaf = name.rsplit(".", 1)[-1]
        with torch.no_grad():
            if leaf == "running_var":
                value.copy_(torch.rand(value.shape, generator=generator) * 0.8 + 0.6)
            elif leaf == "running_mean" or (value.ndim == 1 and leaf.endswith("bias")):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
            elif value.ndim == 1 and leaf == "weight":
                value.copy_(torch.rand(value.shape, generator=generator) * 0.6 + 0.7)
    return module.eval().requires_grad_(False)
