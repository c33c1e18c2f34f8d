"""Where a process trains, and what it shares with the others: PyTorch's own engine, set up here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from cris_deploy.errors import BackendError
from cris_deploy.execution.backends import Compute
from cris_train.errors import TrainingError
from cris_train.run.recipe import DeviceChoice

T = TypeVar("T")

# What torchrun tells each process it starts.
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class Process:
    """A training process among its like.

    Attributes:
        device: Its own.
        rank: 0 to world - 1; 0 writes.
        world: Number of processes, on all machines.
        told: A sentence for the user: what was chosen, and why.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    told: str = ""

    @property
    def writes(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of a list; all parts together are the list."""
        return items[self.rank :: self.world]

    def all_of(self, value: T) -> list[T]:
        """What each process has, by rank (picklable; every process must ask)."""
        if self.world == 1:
            return [value]
        values: list[T | None] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def all_rows(self, row: Tensor) -> Tensor:
        """A small tensor of each process: (n,) -> (world, n)."""
        if self.world == 1:
            return row[None]
        rows = [torch.empty_like(row) for _ in range(self.world)]
        distributed.all_gather(rows, row)
        return torch.stack(rows)


@contextmanager
def joined(choice: DeviceChoice, precision: Compute) -> Iterator[Process]:
    """Take this process's place: alone, or among those torchrun started.

    The process group is NCCL's on CUDA and gloo's on CPUs.

    Raises:
        BackendError: a GPU or a precision that was asked for is not there.
        TrainingError: torchrun's variables are there in part.
    """
    rank, local, world = _ranks()
    device, why = _device(choice, local)
    _check(device, precision)
    alone = "" if world == 1 else f", {world} processes"
    process = Process(device, rank, world, f"device: {_name(device)}{why}{alone}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield process
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, device_id=device if backend == "nccl" else None)
    # Not after an error: the others wait in a collective then, until torchrun ends them.
    yield process
    distributed.destroy_process_group()


def _ranks() -> tuple[int, int, int]:
    given = [os.environ.get(name) for name in TORCHRUN]
    if given.count(None) == len(given):
        return 0, 0, 1
    try:
        rank, local, world = (int(value or "") for value in given)
    except ValueError as error:
        raise TrainingError(
            f"{', '.join(TORCHRUN)} are {given}: start several processes with torchrun, one "
            f"without these variables"
        ) from error
    return rank, local, world


def _device(choice: DeviceChoice, local: int) -> tuple[torch.device, str]:
    """The device, and the reason if it was chosen here."""
    count = 0 if choice is DeviceChoice.CPU else torch.cuda.device_count()
    if choice is DeviceChoice.CPU:
        return torch.device("cpu"), ""
    if choice is DeviceChoice.AUTO and not count:
        return torch.device("cpu"), " (auto: PyTorch finds no GPU)"
    if local >= count:
        raise BackendError(
            f"device: process {local} of this machine needs a GPU of its own, and PyTorch finds "
            f"{count}: start fewer processes (--nproc-per-node), install PyTorch for CUDA, or set "
            f"device=cpu"
        )
    return torch.device("cuda", local), " (auto)" if choice is DeviceChoice.AUTO else ""


def _check(device: torch.device, precision: Compute) -> None:
    if (
        device.type == "cuda"
        and precision is Compute.BF16
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise BackendError(
            f"precision: {torch.cuda.get_device_name(device)} does not compute in bfloat16; set "
            f"precision=fp16 or precision=fp32"
        )


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"CPU, {torch.get_num_threads()} threads"
