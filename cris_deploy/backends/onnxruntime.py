"""ONNX Runtime, on the CPU or, if its CUDA provider really works, on an NVIDIA GPU."""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from cris_deploy.backends import Compute, Device, Graph, Runtime, Settings, one_line
from cris_deploy.bundle import Bundle
from cris_deploy.errors import BackendError
from cris_deploy.manifest import GraphName, GraphSpec, Precision

_CUDA = "CUDAExecutionProvider"
_PROVIDERS = {Device.CPU: "CPUExecutionProvider", Device.CUDA: _CUDA}
_WARNINGS_AND_BELOW = 3  # log only errors: warnings of a valid bundle help nobody


REMEDIES = {
    Device.CUDA: "run pip uninstall onnxruntime && pip install 'cris-deploy[gpu]', or drop the "
    "device option",
    Device.CPU: "run pip install 'cris-deploy[cpu]'",
}


def devices() -> tuple[Device, ...]:
    """Name the devices this installation was built for; whether CUDA works shows on loading."""
    available = _module().get_available_providers()
    return tuple(device for device, provider in _PROVIDERS.items() if provider in available)


def computes(precision: Precision, device: Device) -> tuple[Compute, ...]:
    """Give the one arithmetic of a typed graph: what is stored."""
    return (Compute(precision.value),)


def create(settings: Settings) -> Runtime:
    """Make the runtime; BackendError for more than one stream, which it does not have."""
    if settings.streams > 1:
        raise BackendError(
            f"streams is {settings.streams}: onnxruntime has none; take backend openvino, or leave "
            "streams at 1 and call the engine from several threads"
        )
    return _OnnxRuntime(settings)


class _OnnxRuntime:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def load(self, bundle: Bundle, name: GraphName) -> Graph:
        path, device, threads = bundle.graph(name), self._settings.device, self._settings.threads
        if device is Device.CPU:
            return _Session(path, device, threads, {})
        return _FixedShapes(path, bundle.manifest.graphs[name], device, threads)


class _Session:
    """One session. `Run` of ONNX Runtime is thread-safe."""

    def __init__(
        self, path: Path, device: Device, threads: int | None, dimensions: Mapping[str, int]
    ) -> None:
        onnxruntime = _module()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _WARNINGS_AND_BELOW
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # Three sessions, three thread pools: one that is done must not spin beside the next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if device is not Device.CPU:
            # Without this a session whose CUDA libraries are missing works, on the CPU.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        for name, size in dimensions.items():
            options.add_free_dimension_override_by_name(name, size)
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=[_PROVIDERS[device]]
            )
        except Exception as error:  # its exceptions share no base class
            raise BackendError(
                f"onnxruntime {onnxruntime.__version__} cannot load {path.name} on {device}: "
                f"{one_line(error)}"
            ) from None
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            values = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            raise BackendError(f"onnxruntime failed: {one_line(error)}") from None
        return dict(zip(self._outputs, values, strict=True))


class _FixedShapes:
    """A session per set of dimensions.

    With free dimensions, shape arithmetic stays in the graph; it counts as work for the CPU, which
    the CUDA session above refuses. Fixed dimensions fold it away.
    """

    def __init__(self, path: Path, spec: GraphSpec, device: Device, threads: int | None) -> None:
        self._arguments = (path, device, threads)
        self._lock = Lock()
        self._sessions: dict[tuple[int, ...], _Session] = {}
        self._shapes = {tensor.name: tensor.shape for tensor in spec.inputs}
        self._names = sorted(
            {size for shape in self._shapes.values() for size in shape if isinstance(size, str)}
        )
        self._session(tuple(1 for _ in self._names))  # fails here if the device cannot be had

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        sizes = {
            symbol: size
            for name, shape in self._shapes.items()
            for symbol, size in zip(shape, inputs[name].shape, strict=True)
            if isinstance(symbol, str)
        }
        return self._session(tuple(sizes[name] for name in self._names)).run(inputs)

    def _session(self, sizes: tuple[int, ...]) -> _Session:
        with self._lock:
            if sizes not in self._sessions:
                dimensions = dict(zip(self._names, sizes, strict=True))
                self._sessions[sizes] = _Session(*self._arguments, dimensions)
            return self._sessions[sizes]


def _module() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"backend onnxruntime cannot be imported ({one_line(error)}): run "
            "pip install 'cris-deploy[cpu]'"
        ) from None
    module: ModuleType = onnxruntime
    return module
