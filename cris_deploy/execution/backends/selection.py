"""Which backend, device and arithmetic run: what is asked for, or the first that works.

The arithmetic is settled in `choose_compute`, of what the backend's own `computes` offers.
"""

import importlib
import importlib.util
import math
import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final, TypeVar, cast

from cris_deploy import arguments
from cris_deploy.arguments import MOST_THREADS
from cris_deploy.bundle.manifest import GraphName, Precision
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError, InputError
from cris_deploy.execution.backends.interface import (
    AUTO,
    Backend,
    BackendName,
    BackendStatus,
    Choice,
    Compute,
    Device,
    Graph,
    Runtime,
    Settings,
    place,
)
from cris_deploy.machine import gpu
from cris_deploy.machine.versions import version_of, versions_of

_E = TypeVar("_E", bound=StrEnum)

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
            found = _installed(name)
            compute = choose_compute(found, name, target, bundle.manifest.precision, arithmetic)
            if target is Device.CUDA:
                gpu.require_gpu(index, _major("cuda-bindings"))
            settings = Settings(
                target,
                compute,
                threads,
                streams,
                graphs,
                trust_plans,
                index,
                allow_plan_code,
                timeout,
            )
            loaded = _load(found.create(settings), bundle, graph_names)
            bundle.require_unchanged(graph_names)
        except BackendError as error:
            bundle.require_unchanged(graph_names)  # else the backend is not to blame
            if wanted is not None and where is not None:
                raise
            passed_over.append(f"{name} on {place(target, index)} ({error})")
            if target is Device.CUDA:
                overlooked.append(passed_over[-1])
            continue
        reason = _reason(backend, device, precision, compute, passed_over)
        warning = _warning(overlooked) if target is Device.CPU else None
        version = _version(found) or "?"
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
    file = _file_of(name)
    version, problem = _version(file), None
    devices: tuple[Device, ...] = ()
    if version is not None or importlib.util.find_spec(file.PACKAGE) is not None:
        try:
            devices = file.installed_devices()
        except BackendError as error:
            problem = str(error)
    return BackendStatus(name, version, devices, file.INSTALL, problem)


def _candidates(
    backend: BackendName | None, device: Device | None
) -> Iterator[tuple[BackendName, Device]]:
    if backend is not None and device is not None:
        yield backend, device  # in no table, perhaps: then its own error says so
        return
    for target in (Device.CUDA, Device.CPU):
        for name in BackendName:
            asked = backend in (None, name) and device in (None, target)
            if asked and target in _file_of(name).DEVICES:
                yield name, target


def _load(runtime: Runtime, bundle: Bundle, names: tuple[GraphName, ...]) -> dict[GraphName, Graph]:
    """Load graphs, all or none: what was loaded before one that fails holds nothing afterwards."""
    try:
        return {name: runtime.load(bundle, name) for name in names}
    except BaseException:
        runtime.close()
        raise


def _file_of(name: BackendName) -> Backend:
    module = importlib.import_module(f"{__package__}.{name.replace('-', '_')}")
    return cast(Backend, module)


def _installed(name: BackendName) -> Backend:
    file = _file_of(name)
    if importlib.util.find_spec(file.PACKAGE) is None:
        raise BackendError(f"backend {name} is not installed: run {file.INSTALL}")
    return file


def choose_compute(
    backend: Backend,
    name: BackendName,
    device: Device,
    stored: Precision,
    asked: Compute | None,
) -> Compute:
    """Give what is asked for, if this backend has it, or else what is fastest on this processor.

    What that is the backend says, by rule: the first of what it offers. For an int8 bundle it is
    float32 on processors on which int8 products are slower (decision 19).

    Raises BackendError if it cannot compute there, or not in that arithmetic.
    """
    if device not in backend.installed_devices():
        raise BackendError(
            f"backend {name} as installed cannot compute on {device}: {backend.REMEDIES[device]}"
        )
    possible = backend.computes(stored, device)
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


def _version(backend: Backend) -> str | None:
    return next(iter(versions_of(backend.DISTRIBUTIONS).values()), None)


def _parse(enum: type[_E], argument: str, value: str) -> _E:
    try:
        return enum(value)
    except ValueError:
        known = ", ".join([AUTO, *enum])
        raise InputError(f"{argument} is {arguments.shown(value)}: give one of {known}") from None
