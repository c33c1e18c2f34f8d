"""What an engine says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cris_deploy.bundle.manifest import ModelFacts, Precision
from cris_deploy.execution.backends import BackendName, Choice, Compute, Device
from cris_deploy.execution.cache import CacheCounts
from cris_deploy.execution.pipeline import Pipeline


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


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What an engine's caches hold and have found: features of images, and of expressions."""

    images: CacheCounts
    expressions: CacheCounts


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes in use at one moment.

    `process` is resident in memory, of the whole process (weights of several engines, Python,
    libraries), `peak` the most it has been; `features` are in the caches, in the host's memory or
    the GPU's; `device_free` and `device_total` are of the GPU, over all processes, None on a CPU.
    """

    process: int
    peak: int
    features: int
    device_free: int | None
    device_total: int | None


def memory_use(pipeline: Pipeline) -> MemoryUse:
    """Look what is in use."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {words[0]: 1024 * int(words[1]) for words in lines if words and words[-1] == "kB"}
    free, total = pipeline.device_memory() or (None, None)
    return MemoryUse(found["VmRSS:"], found["VmHWM:"], pipeline.feature_bytes(), free, total)
