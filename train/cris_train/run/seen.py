"""What came of a step, looked at without making the device wait for the host."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from cris_train.errors import TrainingError


class NotFiniteError(TrainingError):
    """The loss or the gradient is NaN or infinite; the weights are those before the step.

    Attributes:
        number: Of the step, from 0.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


@dataclass(frozen=True)
class Seen:
    """What came of a step.

    Attributes:
        loss: Mean over the global batch.
        skipped: The loss scaler has left the weights as they were.
    """

    loss: float
    skipped: bool


class Pending:
    """A step whose numbers are on their way to the host.

    On a GPU they are copied behind the step's own work, so that reading them waits for that step
    and for nothing that was queued since.
    """

    def __init__(self, number: int, losses: Tensor, norm: Tensor, names: tuple[str, ...]) -> None:
        """`losses` (world,) of the processes and the gradient's `norm` (), float32 on the device;
        `names` of this process's pictures."""
        values = torch.cat([losses.detach(), norm.detach()[None]])
        on_gpu = values.device.type == "cuda"
        self.number, self.names = number, names
        self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=on_gpu)
        self._host.copy_(values, non_blocking=True)
        self._there = cast(Any, torch.cuda.Event)() if on_gpu else None  # torch has no type for it
        if self._there is not None:
            self._there.record()

    def read(self) -> tuple[list[float], float]:
        """The losses by rank, and the norm."""
        if self._there is not None:
            self._there.synchronize()
        *losses, norm = self._host.tolist()
        return losses, norm


def mean(losses: list[float]) -> float:
    """Over the processes, the same in all of them."""
    return math.fsum(losses) / len(losses)
