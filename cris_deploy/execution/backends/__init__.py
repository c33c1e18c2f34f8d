"""Runtimes that execute a bundle's graphs: one file each, behind one small protocol.

A backend's module has three functions: `devices()`, where this installation can compute;
`computes(precision, device)`, in which arithmetic it can run a bundle stored in that precision, the
one that `auto` takes first; and `create(settings)`, which makes its `Runtime`.

No silent fallback: a backend, device or precision that was asked for and cannot be had is a
BackendError that says what to install. Only `auto` chooses, and says what it chose and why.
"""

import importlib
import importlib.util
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import ModuleType
from typing import Any, Final, Protocol, TypeVar

from numpy.typing import NDArray

from cris_deploy import arguments
from cris_deploy.arguments import MOST_THREADS
from cris_deploy.bundle.manifest import GraphName, Precision
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError, InputError
from cris_deploy.machine import gpu
from cris_deploy.machine.versions import version_of, versions_of

AUTO: Final = "auto"
CACHE_VARIABLE: Final = "CRIS_DEPLOY_CACHE"
"""Environment variable that names a folder for compiled graphs; none are kept unless it is set.

OpenVINO's are as large as their weights and save half a second of loading per graph. TensorRT-RTX
keeps the kernels that it compiles for each set of shapes."""

_E = TypeVar("_E", bound=StrEnum)


class BackendName(StrEnum):
    """Runtimes that can be asked for."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


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
    backend: which one, for a module that has several.
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
    backend: BackendName | None = None
    trust_plans: bool = False
    index: int = 0
    plan_code: bool = False
    timeout: float | None = None


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
        """The device as it is asked for: "cpu", "cuda", "cuda:1"."""
        return _place(self.device, self.index)


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """Whether a backend is installed, on which devices it can compute, how to install it."""

    name: BackendName
    version: str | None
    devices: tuple[Device, ...]
    install: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class _Entry:
    """A backend that can be had: its module here, its package, the extras that install it."""

    module: str
    package: str
    distributions: tuple[str, ...]
    install: str


_REGISTRY: Final[Mapping[BackendName, _Entry]] = {
    BackendName.ONNXRUNTIME: _Entry(
        "cris_deploy.execution.backends.onnxruntime",
        "onnxruntime",
        ("onnxruntime", "onnxruntime-gpu"),
        "pip install 'cris-deploy[cpu]'",
    ),
    BackendName.OPENVINO: _Entry(
        "cris_deploy.execution.backends.openvino",
        "openvino",
        ("openvino",),
        "pip install 'cris-deploy[openvino]'",
    ),
    BackendName.TENSORRT: _Entry(
        "cris_deploy.execution.backends.tensorrt",
        "tensorrt",
        ("tensorrt",),
        "pip install 'cris-deploy[tensorrt]'",
    ),
    BackendName.TENSORRT_RTX: _Entry(
        "cris_deploy.execution.backends.tensorrt",
        "tensorrt_rtx",
        ("tensorrt_rtx", "tensorrt-rtx"),
        "pip install 'cris-deploy[tensorrt-rtx]'",
    ),
}
# What `auto` tries, the fastest first.
_PREFERENCE: Final = (
    (BackendName.TENSORRT, Device.CUDA),
    (BackendName.TENSORRT_RTX, Device.CUDA),
    (BackendName.ONNXRUNTIME, Device.CUDA),
    (BackendName.OPENVINO, Device.CPU),
    (BackendName.ONNXRUNTIME, Device.CPU),
)
_DEVICE: Final = re.compile(r"(cpu|cuda)|cuda:([0-9]{1,4})")
_REMEDIES: Final = {
    Compute.FP32: "export without --fp16 and --int8",
    Compute.FP16: "export with --fp16, for a GPU",
    Compute.BF16: "it takes backend openvino and a CPU with bfloat16 instructions",
    Compute.INT8: "export with --int8 --calibration FILE",
    Compute.INT8_BF16: (
        "it takes an int8 bundle, backend openvino and a CPU with bfloat16 instructions"
    ),
}


def load_graphs(
    bundle: Bundle,
    names: Iterable[GraphName],
    backend: str = AUTO,
    device: str = AUTO,
    precision: str = AUTO,
    threads: int | None = None,
    streams: int = 1,
    graphs: bool = True,
    trust_plans: bool = False,
    allow_plan_code: bool = False,
    timeout: float | None = None,
) -> tuple[dict[GraphName, Graph], Choice]:
    """Load graphs of a bundle with what is asked for, or with the first of what `auto` tries.

    Raises InputError for an unknown name or number, BackendError if it cannot be had, BundleError
    if the bundle was replaced since it was opened.
    """
    threads = arguments.whole_or_none("threads", threads, 1, MOST_THREADS, "all cores")
    streams = arguments.whole("streams", streams, 1, MOST_THREADS)
    arguments.flag("cuda_graphs", graphs)
    arguments.flag("trust_plans", trust_plans)
    arguments.flag("allow_plan_code", allow_plan_code)
    if timeout is not None and not (
        type(timeout) in (int, float) and 0 < timeout < math.inf  # a bool is an int, too
    ):
        raise InputError(f"timeout is {timeout!r}: give seconds above 0, or None for no end")
    wanted, (where, index), arithmetic = parse_names(backend, device, precision)
    graph_names = tuple(names)
    passed_over: list[str] = []
    overlooked: list[str] = []
    for name, target in _candidates(wanted, where):
        try:
            module = _module(name)
            compute = _choose_compute(module, name, target, bundle.manifest.precision, arithmetic)
            if target is Device.CUDA:
                gpu.require_gpu(index, _major("cuda-bindings"))
            settings = Settings(
                target,
                compute,
                threads,
                streams,
                graphs,
                name,
                trust_plans,
                index,
                allow_plan_code,
                timeout,
            )
            loaded = _load(module.create(settings), bundle, graph_names)
            bundle.require_unchanged(graph_names)
        except BackendError as error:
            bundle.require_unchanged(graph_names)  # else the backend is not to blame
            if wanted is not None and where is not None:
                raise
            passed_over.append(f"{name} on {_place(target, index)} ({error})")
            if target is Device.CUDA:
                overlooked.append(passed_over[-1])
            continue
        reason = _reason(backend, device, precision, compute, passed_over)
        warning = _warning(overlooked) if target is Device.CPU else None
        version = _version(_REGISTRY[name]) or "?"
        return loaded, Choice(name, version, target, compute, reason, index, warning)
    raise BackendError(
        f"nothing here can run backend {backend} on device {device} in precision {precision}: "
        + "; ".join(passed_over)
    )


def parse_names(
    backend: str, device: str, precision: str
) -> tuple[BackendName | None, tuple[Device | None, int], Compute | None]:
    """Read what is asked for, None for `auto`; InputError for an unknown name."""
    return (
        None if backend == AUTO else _parse(BackendName, "backend", backend),
        parse_device(device),
        None if precision == AUTO else _parse(Compute, "precision", precision),
    )


def parse_device(device: str) -> tuple[Device | None, int]:
    """Read "auto", "cpu", "cuda" or "cuda:1": the device, None for auto, and the GPU's index.

    GPUs are counted from 0 in CUDA's order, among those that CUDA_VISIBLE_DEVICES leaves. Raises
    InputError for anything else.
    """
    if device == AUTO:
        return None, 0
    found = _DEVICE.fullmatch(device) if isinstance(device, str) else None
    if found is None:
        raise InputError(
            f"device is {device!r}: give one of {AUTO}, {', '.join(Device)}, or cuda:N for the GPU "
            "number N, counted from 0"
        )
    return (Device(found[1]), 0) if found[1] else (Device.CUDA, int(found[2]))


def close_graphs(graphs: Iterable[Graph]) -> None:
    """Give back what loaded graphs hold of a GPU; none of them is used any more."""
    for graph in graphs:
        device = getattr(graph, "device", None)  # what runs on a CPU ends with its last user
        if device is not None:
            device.close()


def status(name: BackendName) -> BackendStatus:
    """Look whether a backend is installed and what it can use; imports it if it is there."""
    entry = _REGISTRY[name]
    version, devices, problem = _version(entry), (), None
    if version is not None or importlib.util.find_spec(entry.package) is not None:
        try:
            devices = importlib.import_module(entry.module).devices()
        except BackendError as error:
            problem = str(error)
    return BackendStatus(name, version, devices, entry.install, problem)


def one_line(error: BaseException) -> str:
    """Give a runtime's message without its line breaks, for an error of ours."""
    return " ".join(str(error).split())


def _candidates(
    backend: BackendName | None, device: Device | None
) -> Iterator[tuple[BackendName, Device]]:
    if backend is not None and device is not None:
        yield backend, device  # in no table, perhaps: then its own error says so
        return
    for name, target in _PREFERENCE:
        if backend in (None, name) and device in (None, target):
            yield name, target


def _load(runtime: Runtime, bundle: Bundle, names: tuple[GraphName, ...]) -> dict[GraphName, Graph]:
    """Load graphs, all or none: what was loaded before one that fails holds nothing afterwards."""
    try:
        return {name: runtime.load(bundle, name) for name in names}
    except BaseException:
        runtime.close()
        raise


def _module(name: BackendName) -> ModuleType:
    entry = _REGISTRY[name]
    if importlib.util.find_spec(entry.package) is None:
        raise BackendError(f"backend {name} is not installed: run {entry.install}")
    return importlib.import_module(entry.module)


def _choose_compute(
    module: ModuleType,
    name: BackendName,
    device: Device,
    stored: Precision,
    asked: Compute | None,
) -> Compute:
    if device not in module.devices():
        raise BackendError(
            f"backend {name} as installed cannot compute on {device}: {module.REMEDIES[device]}"
        )
    possible: tuple[Compute, ...] = module.computes(stored, device)
    if asked is None:
        return possible[0]
    if asked not in possible:
        raise BackendError(
            f"precision {asked}: {name} on {device} runs an {stored} bundle in "
            f"{' or '.join(possible)}: {_remedy(asked, stored)}"
        )
    return asked


def _remedy(asked: Compute, stored: Precision) -> str:
    if asked is Compute.INT8 and stored is Precision.INT8:
        return "take backend tensorrt, or device cpu"
    return _REMEDIES[asked]


def _place(device: Device, index: int) -> str:
    return f"{device}:{index}" if index else str(device)


def _warning(overlooked: list[str]) -> str | None:
    """Say why the GPUs that are here are not used; None if there are none, or nobody tried."""
    gpus = gpu.survey_gpus().gpus if overlooked else ()
    if not gpus:
        return None
    return f"the CPU serves, though CUDA shows {gpus[0].name}: {'; '.join(overlooked)}"


def _major(distribution: str) -> int | None:
    version = version_of(distribution)
    return None if version is None else int(version.split(".")[0])


def _reason(
    backend: str, device: str, precision: str, compute: Compute, passed_over: list[str]
) -> str:
    asked = [
        f"{argument} {value}"
        for argument, value in (("backend", backend), ("device", device), ("precision", precision))
        if value != AUTO
    ]
    text = f"{', '.join(asked)} asked for" if asked else "the first that auto found to work"
    if precision == AUTO:
        text += f"; {compute} is this bundle's default here"
    if passed_over:
        text += "; passed over: " + "; ".join(passed_over)
    return text


def _version(entry: _Entry) -> str | None:
    return next(iter(versions_of(entry.distributions).values()), None)


def _parse(enum: type[_E], argument: str, value: str) -> _E:
    try:
        return enum(value)
    except ValueError:
        known = ", ".join([AUTO, *enum])
        raise InputError(f"{argument} is {arguments.shown(value)}: give one of {known}") from None
