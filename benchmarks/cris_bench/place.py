"""Where contestants run."""

from __future__ import annotations

from dataclasses import dataclass

from cris_deploy.execution.backends import Device, parse_device


@dataclass(frozen=True)
class Place:
    """A device, and which of them; as text "cpu", "cuda" or "cuda:1", as engines and PyTorch take.

    Attributes:
        device: Its kind.
        index: Of a GPU, in CUDA's order.
    """

    device: Device
    index: int = 0

    def __str__(self) -> str:
        return f"{self.device}:{self.index}" if self.index else str(self.device)

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device is Device.CUDA

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """Read what `--device` takes, None for "auto"; InputError for anything else."""
        device, index = parse_device(text)
        return None if device is None else cls(device, index)
