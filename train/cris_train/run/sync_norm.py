"""Batch norm over the batch of all processes, where PyTorch has none: on CPUs."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm


class CpuSyncBatchNorm(_BatchNorm):
    """`torch.nn.SyncBatchNorm` for CPUs, which that one refuses.

    In training, mean and variance are those of all processes' inputs, forwards and backwards; in
    evaluation it is plain batch norm. Every process must bring an input of the same channels at
    the same point of its graph. Two sums over the processes are taken, not one: the variance from
    squared distances, because E[x^2] - E[x]^2 cancels in float32.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # (N, C) and (N, C, h, w) are both taken

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) in any floating type -> the same."""
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return self._normalised(x.float()).to(x.dtype)

    def _normalised(self, x: Tensor) -> Tensor:
        over = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)  # C -> 1C11
        size = x.new_tensor([x.numel() / x.shape[1]])
        sums = _SumOfAll.apply(torch.cat([x.sum(over), size]))  # (C + 1,)
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.reshape(shape)
        variance = _SumOfAll.apply(centred.square().sum(over)) / count
        self._follow(mean.detach(), variance.detach(), float(count))
        scaled = centred * torch.rsqrt(variance + self.eps).reshape(shape)
        out: Tensor = scaled * self.weight.reshape(shape) + self.bias.reshape(shape)
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: float) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        # Like PyTorch: the batch is normalised by the biased variance, the unbiased is remembered.
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


class _SumOfAll(Function):
    """Sum over all processes; so is its gradient, because every process's loss depends on it.

    `torch.distributed.nn.functional.all_reduce` is the same, but deprecated; what follows it is
    private and has no gradient in the oldest PyTorch that is supported.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def synchronised(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace batch norms in place by ones over all processes; parameters and names stay.

    On CUDA these are `torch.nn.SyncBatchNorm`.
    """
    if device.type == "cuda":
        convert = cast(Any, nn.SyncBatchNorm.convert_sync_batchnorm)
        return cast(nn.Module, convert(model))
    for name, child in list(model.named_children()):
        if isinstance(child, _BatchNorm):
            own = CpuSyncBatchNorm(child.num_features, child.eps, child.momentum)
            own.train(child.training)
            # The very tensors, not copies: an optimiser may hold them already.
            own.weight, own.bias = child.weight, child.bias
            for buffer, value in child.named_buffers():
                setattr(own, buffer, value)
            setattr(model, name, own)
        else:
            synchronised(child, device)
    return model
