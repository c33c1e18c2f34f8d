"""Activation checkpointing: less memory for a second forward pass, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from open_clip.modified_resnet import Bottleneck
from open_clip.transformer import ResidualAttentionBlock
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from cris_train.model import Cris
from cris_train.model.backbone import DenseAttentionPool
from cris_train.model.decoder import DecoderLayer
from cris_train.model.neck import Neck
from cris_train.model.projector import Projector

# What is kept between them is one map each; all that lies inside is computed again.
BLOCKS = (Bottleneck, DenseAttentionPool, ResidualAttentionBlock, Neck, DecoderLayer, Projector)


def recompute_activations(model: Cris) -> None:
    """Make a model's blocks forget their activations and compute them again for the gradient.

    Parameters, names and results stay; evaluation is not touched (nothing is kept there anyway).
    """
    for module in model.modules():
        if isinstance(module, BLOCKS):
            setattr(module, "forward", partial(_forward, module, module.forward))  # noqa: B010


def _forward(module: nn.Module, plain: Callable[..., Any], *args: Any, **named: Any) -> Any:
    if not module.training:
        return plain(*args, **named)
    contexts = partial(_contexts, module)
    return checkpoint(plain, *args, use_reentrant=False, context_fn=contexts, **named)


def _contexts(
    module: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first and of the second pass."""
    return nullcontext(), _statistics_kept(module)


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """A batch counts once in the running statistics of batch norm, not twice."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # nothing of the batch is taken over
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
