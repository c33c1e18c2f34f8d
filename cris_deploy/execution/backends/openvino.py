"""OpenVINO, on CPUs: float32, bfloat16 where the processor has it, and int8.

Graphs are compiled for one image and one expression. Rows of a batch run one after the other: on a
CPU one row fills the cores, its activations stay in the caches, and fixed shapes are planned better
than free ones. Only the tokens of one expression are too few to fill them: several expressions go
through a text encoder of free shape, which is compiled when they first come.
"""

import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cris_deploy.bundle.manifest import GraphName, GraphSpec, Precision, TensorSpec
from cris_deploy.bundle.reading import WEIGHTS, Bundle
from cris_deploy.errors import BackendError, CrisError, EngineTimeoutError, one_line
from cris_deploy.execution.backends import unquantised, winograd
from cris_deploy.execution.backends.interface import (
    CACHE_VARIABLE,
    Compute,
    Device,
    Graph,
    Runtime,
    Settings,
)
from cris_deploy.machine.cpu import saturates, this_cpu
from cris_deploy.machine.memory import enough_memory

_log = logging.getLogger("cris_deploy")

PACKAGE: Final = "openvino"
DISTRIBUTIONS: Final = ("openvino",)
INSTALL: Final = "pip install 'cris-deploy[openvino]'"
DEVICES: Final = (Device.CPU,)
REMEDIES: Final = {Device.CUDA: "take backend tensorrt or onnxruntime, or device cpu"}

_ANY: Final = -1  # a free dimension
_CORE_LOCK: Final = Lock()
# What float arithmetic is left to: OpenVINO's default is bfloat16 wherever the processor has it.
_HINTS = {
    Compute.FP32: "f32",
    Compute.BF16: "bf16",
    Compute.INT8: "f32",
    Compute.INT8_BF16: "bf16",
}
_UNROUNDED: Final = (Precision.INT8, Compute.FP32)
"""A bundle's precision and the arithmetic for which its rounding is taken out."""


def installed_devices() -> tuple[Device, ...]:
    """Name the devices: the CPU."""
    _module()
    return DEVICES


def computes(precision: Precision, device: Device) -> tuple[Compute, ...]:
    """Give the arithmetic for a stored precision, the one `auto` takes first.

    Float16 weights are computed in float32 by default, which can only be closer to the original.
    Beside int8 layers bfloat16 is the default: its error is a tenth of theirs. Where int8 products
    are no faster, int8 weights are computed in float32, too (decision 19).
    """
    has_bfloat16 = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision is Precision.INT8:
        rounded = (Compute.INT8_BF16, Compute.INT8) if has_bfloat16 else (Compute.INT8,)
        slow = this_cpu().saturates
        return (Compute.FP32, *rounded) if slow else (*rounded, Compute.FP32)
    return (Compute.FP32, Compute.BF16) if has_bfloat16 else (Compute.FP32,)


def create(settings: Settings) -> Runtime:
    """Make the runtime."""
    return _OpenVino(settings)


def core() -> Any:
    """The one `openvino.Core` of this process, never destroyed.

    A core that loads the CPU plugin gives its thread a stack for signal handlers, and frees it when
    it is destroyed. When two of them end in the order of their making, or one in another thread,
    the thread is left with a stack that is gone (OpenVINO 2026.4): its next signal, an interrupt or
    the end of a child, is a segmentation fault.
    """
    with _CORE_LOCK:  # a cache by itself lets two threads make one each
        return _make_core()


@functools.cache
def _make_core() -> Any:
    return _module().Core()


class _OpenVino:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def load(self, bundle: Bundle, name: GraphName) -> Graph:
        unrounded = (bundle.manifest.precision, self._settings.compute) == _UNROUNDED
        if saturates(bundle.manifest.weight_levels) and not unrounded:
            raise BackendError(
                f"the int8 weights of bundle {bundle.path} have 8 bits, as earlier versions wrote "
                f"them: on {this_cpu().name}, a CPU without VNNI, openvino's sums saturate and "
                "masks are wrong: export the bundle again, or take backend onnxruntime"
            )
        settings = self._settings
        config: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": _HINTS[settings.compute],
            "NUM_STREAMS": settings.streams,
            "PERFORMANCE_HINT": "LATENCY" if settings.streams == 1 else "THROUGHPUT",
        }
        if settings.compute is Compute.INT8:
            # Or the inputs of layers whose weights alone are int8 are rounded at run time: those of
            # the text encoder, left in float32 since every pixel reads them. Beside bfloat16, whose
            # error is as large, that changes nothing but the time.
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        if settings.threads is not None:
            config["INFERENCE_NUM_THREADS"] = settings.threads
        path, spec = bundle.graph(name), bundle.manifest.graphs[name]
        cache = _cache_folder(bundle, name, config)

        @contextmanager
        def loading() -> Iterator[None]:
            try:
                with enough_memory(f"openvino loaded {path.name}"):
                    yield
            except CrisError:
                raise
            except Exception as error:  # its exceptions are plain RuntimeErrors
                raise BackendError(
                    f"openvino {_module().__version__} cannot load {path.name}: {one_line(error)}: "
                    "copy or export the bundle again, or take another backend"
                ) from None

        with loading():
            model = core().read_model(path)
            if unrounded:
                unquantised.rewrite(model)
            # A copy shares the weights; files that are replaced later are not read again.
            free = model.clone() if name is GraphName.TEXT_ENCODER else None
            compiled = self._compile(model, spec, 1, config, cache)
            one = _OneByOne(compiled, spec, settings)

        def many() -> _Together:
            with loading():
                compiled = self._compile(free, spec, _ANY, config, cache)
                return _Together(compiled, spec, settings)

        return one if free is None else _OneOrMany(one, many)

    def close(self) -> None:
        """Do nothing: a compiled graph ends with its last user."""

    def _compile(
        self,
        model: Any,
        spec: GraphSpec,
        rows: int,
        config: dict[str, object],
        cache: Path | None,
    ) -> Any:
        model.reshape({tensor.name: _shape(tensor, rows) for tensor in spec.inputs})
        if self._settings.compute is Compute.FP32:
            winograd.rewrite(model)
        if cache is None:
            return core().compile_model(model, "CPU", config)
        try:
            return core().compile_model(model, "CPU", {**config, "CACHE_DIR": str(cache)})
        except Exception as error:
            # A cache is never needed: without it the graph is compiled from the bundle.
            _log.warning("compiled graphs in %s are unusable (%s): removed", cache, one_line(error))
            shutil.rmtree(cache, ignore_errors=True)
            return core().compile_model(model, "CPU", config)


class _Requests:
    """One request per stream of a compiled graph; a request serves one thread at a time."""

    def __init__(self, compiled: Any, settings: Settings) -> None:
        self._settings = settings
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(settings.streams):
            self._idle.put(compiled.create_infer_request())

    @contextmanager
    def one(self) -> Iterator[Any]:
        """Lend a request; what goes wrong meanwhile is a BackendError.

        Raises EngineTimeoutError if none comes free.
        """
        timeout = self._settings.timeout
        try:
            request = self._idle.get(timeout=timeout)
        except Empty:
            raise EngineTimeoutError(
                f"none of {self._settings.streams} streams came free in {timeout} s: raise streams "
                "or timeout, or call from fewer threads"
            ) from None
        try:
            with enough_memory("openvino ran"):
                yield request
        except CrisError:
            raise
        except Exception as error:
            raise BackendError(f"openvino failed: {one_line(error)}") from None
        finally:
            self._idle.put(request)


class _OneByOne:
    """A graph compiled for one row."""

    def __init__(self, compiled: Any, spec: GraphSpec, settings: Settings) -> None:
        self._inputs = [tensor.name for tensor in spec.inputs]
        self._outputs = {tensor.name: _shape(tensor, 1) for tensor in spec.outputs}
        self._requests = _Requests(compiled, settings)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # Inputs are read where they are, so they have to lie in one piece.
        arrays = {name: np.ascontiguousarray(inputs[name]) for name in self._inputs}
        count = max(len(value) for value in arrays.values())
        outputs: dict[str, NDArray[Any]] = {}
        with self._requests.one() as request:
            for index in range(count):
                rows = {
                    name: value[index : index + 1] if len(value) == count else value
                    for name, value in arrays.items()
                }
                request.infer(rows, share_inputs=True)
                for name, shape in self._outputs.items():
                    # Copies: the request's own memory belongs to its next run.
                    row = request.get_tensor(name).data
                    if index == 0:
                        outputs[name] = np.empty((count, *shape[1:]), row.dtype)
                    outputs[name][index] = row[0]
        return outputs


class _Together:
    """A graph compiled for any number of rows, which all its inputs have."""

    def __init__(self, compiled: Any, spec: GraphSpec, settings: Settings) -> None:
        self._inputs = [tensor.name for tensor in spec.inputs]
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._requests = _Requests(compiled, settings)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        arrays = {name: np.ascontiguousarray(inputs[name]) for name in self._inputs}
        with self._requests.one() as request:
            request.infer(arrays, share_inputs=True)
            return {name: request.get_tensor(name).data.copy() for name in self._outputs}


class _OneOrMany:
    """One row by a graph compiled for it, several by another, made when they first come."""

    def __init__(self, one: _OneByOne, make_many: Callable[[], _Together]) -> None:
        self._one, self._make_many = one, make_many
        self._many: _Together | None = None
        self._lock = Lock()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if all(len(value) == 1 for value in inputs.values()):
            return self._one.run(inputs)
        with self._lock:
            if self._many is None:
                self._many = self._make_many()
        return self._many.run(inputs)


def _shape(tensor: TensorSpec, rows: int) -> list[int]:
    """A tensor's shape with every free dimension `rows`."""
    return [size if isinstance(size, int) else rows for size in tensor.shape]


def _cache_folder(bundle: Bundle, name: GraphName, config: Mapping[str, object]) -> Path | None:
    """The folder for one graph of one bundle: named by contents, so a path may hold another.

    And by how it is compiled and for what: OpenVINO 2026.4 gives a graph that was compiled for
    int8 to who asks for int8 with bfloat16 between, and on processors with AMX its masks are wrong.
    """
    place = os.environ.get(CACHE_VARIABLE)
    if not place:
        return None
    files = bundle.manifest.files
    graph = bundle.manifest.graphs[name].file
    contents = [files[file].sha256 for file in (graph, WEIGHTS) if file in files]
    settings = [f"{key}={value}" for key, value in sorted(config.items())]
    where = [_module().__version__, this_cpu().instructions]
    digest = hashlib.sha256("\n".join([*contents, *settings, *where]).encode())
    return Path(place) / "openvino" / digest.hexdigest()[:32]


def _module() -> ModuleType:
    try:
        import openvino
    except ImportError as error:
        raise BackendError(
            f"backend openvino cannot be imported ({one_line(error)}): run {INSTALL}"
        ) from None
    module: ModuleType = openvino
    return module
