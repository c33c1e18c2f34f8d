"""The words of the backends: what can be asked for, and what a backend's file has to have."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from numpy.typing import NDArray

from cris_deploy.bundle.manifest import GraphName, Precision
from cris_deploy.bundle.reading import Bundle

AUTO: Final = "auto"
CACHE_VARIABLE: Final = "CRIS_DEPLOY_CACHE"
"""Environment variable that names a folder for compiled graphs; none are kept unless it is set.

OpenVINO's are as large as their weights and save half a second of loading per graph. TensorRT-RTX
keeps the kernels that it compiles for each set of shapes."""


class BackendName(StrEnum):
    """Runtimes that can be asked for, in the order in which `auto` tries them on a device.

    Each is the file of that name in this folder, with "_" for "-"; see `Backend`.
    """

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"


class Device(StrEnum):
    """Where a graph computes."""

    CPU = "cpu"
    CUDA = "cuda"


class Compute(StrEnum):
    """Arithmetic a graph runs in; INT8 where the graph is quantised, its other parts as stored.

    INT8_BF16 has its other parts in bfloat16. What a bundle stores is a `Precision`. They differ
    where a runtime computes in another type than the one stored: bfloat16 from float32, say.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    INT8_BF16 = "int8-bf16"


class Graph(Protocol):
    """A loaded graph. May be run from many threads.

    `run` goes from host to host. On a GPU a graph is a `cuda.graph.DeviceGraph`, whose tensors stay
    on the device between the stages.
    """

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Give all outputs by name for all inputs by name, in the types the graph has."""


class Runtime(Protocol):
    """A runtime on one device."""

    def load(self, bundle: Bundle, name: GraphName) -> Graph:
        """Load a graph of a bundle; BackendError if that fails."""

    def close(self) -> None:
        """Give back what its graphs hold; none of them is used any more."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a runtime is to run.

    threads: per run on a CPU; None leaves it to the runtime.
    streams: runs that may go on at once; on a CPU they share the processors.
    graphs: whether a GPU's work is captured in CUDA graphs.
    trust_plans: whether plans are taken that the manifest does not list.
    index: of the GPU, in CUDA's order.
    plan_code: whether plans may bring machine code for the host.
    timeout: seconds that a wait may take; None waits for as long as it takes.
    """

    device: Device
    compute: Compute
    threads: int | None = None
    streams: int = 1
    graphs: bool = True
    trust_plans: bool = False
    index: int = 0
    plan_code: bool = False
    timeout: float | None = None


class Backend(Protocol):
    """What the file of a backend has to have. Importing it must not import its runtime."""

    @property
    def PACKAGE(self) -> str:
        """The runtime's package: the backend is installed if this can be imported."""

    @property
    def DISTRIBUTIONS(self) -> tuple[str, ...]:
        """What pip may have installed it from; the version is that of the first that is there."""

    @property
    def INSTALL(self) -> str:
        """The command that installs it."""

    @property
    def DEVICES(self) -> tuple[Device, ...]:
        """Where it can compute in some installation: where `auto` tries it."""

    @property
    def REMEDIES(self) -> Mapping[Device, str]:
        """What to do about a device on which this installation cannot compute."""

    def installed_devices(self) -> tuple[Device, ...]:
        """Where this installation can compute; BackendError if it cannot be imported."""

    def computes(self, precision: Precision, device: Device, /) -> tuple[Compute, ...]:
        """Give the arithmetic for a stored precision, first the one that `auto` takes."""

    def create(self, settings: Settings, /) -> Runtime:
        """Make the runtime; BackendError if something that it needs is missing."""


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """Whether a backend is installed, on which devices it can compute, how to install it."""

    name: BackendName
    version: str | None
    devices: tuple[Device, ...]
    install: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend, device and arithmetic in use, and why these.

    `index` is the GPU's; `warning` says why a GPU that is here is not used, if `auto` had to leave
    it.
    """

    backend: BackendName
    version: str
    device: Device
    compute: Compute
    reason: str
    index: int = 0
    warning: str | None = None

    @property
    def place(self) -> str:
        """The device as it is asked for, with its number unless that is 0."""
        return place(self.device, self.index)


def place(device: Device, index: int) -> str:
    """Name a device as it is asked for: "cpu", "cuda", "cuda:1"."""
    return f"{device}:{index}" if index else str(device)
