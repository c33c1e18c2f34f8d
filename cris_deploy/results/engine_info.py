"""What an engine says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cris_deploy.bundle.manifest import ModelFacts, Precision
from cris_deploy.execution.backends import BackendName, Choice, Compute, Device


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine runs, and on what.

    `precision` is what the bundle stores, `choice` says which backend, device and arithmetic are in
    use, and why, `mask_device` where the mask step is done (a GPU's is done on the CPU if the
    extension was built without CUDA).
    """

    bundle: Path
    model: ModelFacts
    precision: Precision
    choice: Choice
    threads: int | None
    streams: int
    versions: Mapping[str, str]
    mask_device: Device

    @property
    def backend(self) -> BackendName:
        """The runtime in use."""
        return self.choice.backend

    @property
    def device(self) -> Device:
        """The device in use."""
        return self.choice.device

    @property
    def compute(self) -> Compute:
        """The arithmetic in use."""
        return self.choice.compute

    @property
    def reason(self) -> str:
        """Why this backend, this device and this arithmetic."""
        return self.choice.reason
