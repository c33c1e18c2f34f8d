"""Runtimes that execute a bundle's graphs: one file each, behind one small protocol.

No silent fallback: a backend or device that was asked for and cannot be had is a BackendError that
says what to install. Only `auto` chooses, and says what it chose and why.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from numpy.typing import NDArray

from cris_deploy.bundle import Bundle
from cris_deploy.errors import BackendError, InputError
from cris_deploy.manifest import GraphName, GraphSpec

AUTO: Final = "auto"

_E = TypeVar("_E", bound=StrEnum)


class BackendName(StrEnum):
    """Runtimes that can be asked for."""

    ONNXRUNTIME = "onnxruntime"


class Device(StrEnum):
    """Where a graph computes."""

    CPU = "cpu"
    CUDA = "cuda"


class Graph(Protocol):
    """A loaded graph. May be run from many threads."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Give all outputs by name for all inputs by name, in the types the graph has."""


class Runtime(Protocol):
    """A runtime on one device."""

    def load(self, path: Path, spec: GraphSpec) -> Graph:
        """Load a graph by path (its weights lie beside it); BackendError if that fails."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend and device in use, and why these."""

    backend: BackendName
    version: str
    device: Device
    reason: str


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


# In the order in which `auto` prefers them.
_REGISTRY: Final[Mapping[BackendName, _Entry]] = {
    BackendName.ONNXRUNTIME: _Entry(
        "cris_deploy.backends.onnxruntime",
        "onnxruntime",
        ("onnxruntime", "onnxruntime-gpu"),
        "pip install 'cris-deploy[cpu]'",
    ),
}


def load_graphs(
    bundle: Bundle,
    names: Iterable[GraphName],
    backend: str = AUTO,
    device: str = AUTO,
    threads: int | None = None,
) -> tuple[dict[GraphName, Graph], Choice]:
    """Load graphs of a bundle with the backend and device that are asked for, or chosen.

    `threads` limits the CPU threads of one graph; None leaves it to the runtime.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}: give at least 1, or None for all cores")
    name, why = _choose_backend(backend)
    asked = None if device == AUTO else _parse(Device, "device", device)
    graph_names = tuple(names)

    def load(where: Device) -> dict[GraphName, Graph]:
        runtime = _runtime(name, where, threads)
        return {
            graph: runtime.load(bundle.graph(graph), bundle.manifest.graphs[graph])
            for graph in graph_names
        }

    if asked is not None:
        graphs = load(asked)
        why += f"; device {asked} was asked for"
        return graphs, Choice(name, _version(_REGISTRY[name]) or "?", asked, why)
    chosen = Device.CPU
    if Device.CUDA in status(name).devices:
        try:
            graphs = load(Device.CUDA)
            chosen, note = Device.CUDA, "device auto: CUDA works"
        except BackendError as error:
            note = f"device auto: cpu, because CUDA does not work ({error})"
    else:
        note = "device auto: cpu, because this backend has no other here"
    if chosen is Device.CPU:
        graphs = load(Device.CPU)
    return graphs, Choice(name, _version(_REGISTRY[name]) or "?", chosen, f"{why}; {note}")


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


def _choose_backend(backend: str) -> tuple[BackendName, str]:
    if backend != AUTO:
        name = _parse(BackendName, "backend", backend)
        return name, f"backend {name} was asked for"
    for name, entry in _REGISTRY.items():
        if importlib.util.find_spec(entry.package) is not None:
            return name, f"backend auto: {name} is the first of those installed"
    commands = " or ".join(entry.install for entry in _REGISTRY.values())
    raise BackendError(f"no backend is installed: run {commands}")


def _runtime(name: BackendName, device: Device, threads: int | None) -> Runtime:
    entry = _REGISTRY[name]
    if importlib.util.find_spec(entry.package) is None:
        raise BackendError(f"backend {name} is not installed: run {entry.install}")
    runtime: Runtime = importlib.import_module(entry.module).create(device, threads)
    return runtime


def _version(entry: _Entry) -> str | None:
    for distribution in entry.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _parse(enum: type[_E], argument: str, value: str) -> _E:
    try:
        return enum(value)
    except ValueError:
        known = ", ".join([AUTO, *enum])
        raise InputError(f"{argument} is {value!r}: give one of {known}") from None
