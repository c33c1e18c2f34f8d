"""OpenVINO, on CPUs: float32, bfloat16 where the processor has it, and int8.

Graphs are compiled for one image and one expression. Rows of a batch run one after the other: on a
CPU one row fills the cores, its activations stay in the caches, and fixed shapes are planned better
than free ones.
"""

import functools
import hashlib
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cris_deploy.backends import Compute, Device, Graph, Runtime, Settings, one_line, winograd
from cris_deploy.bundle import WEIGHTS, Bundle
from cris_deploy.errors import BackendError
from cris_deploy.manifest import GraphName, GraphSpec, Precision, TensorSpec

_log = logging.getLogger("cris_deploy")

CACHE_VARIABLE: Final = "CRIS_DEPLOY_CACHE"
"""Environment variable that names a folder for compiled graphs, each as large as its weights. They
save half a second of loading per graph, so none are kept unless it is set."""

REMEDIES = {Device.CUDA: "take backend tensorrt or onnxruntime, or device cpu"}

# What float arithmetic is left to: OpenVINO's default is bfloat16 wherever the processor has it.
_HINTS = {
    Compute.FP32: "f32",
    Compute.BF16: "bf16",
    Compute.INT8: "f32",
    Compute.INT8_BF16: "bf16",
}


def devices() -> tuple[Device, ...]:
    """Name the devices: the CPU."""
    _module()
    return (Device.CPU,)


def computes(precision: Precision, device: Device) -> tuple[Compute, ...]:
    """Give the arithmetic for a stored precision, the one `auto` takes first.

    Float16 weights are computed in float32 by default, which can only be closer to the original.
    Beside int8 layers bfloat16 is the default: its error is a tenth of theirs.
    """
    has_bfloat16 = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision is Precision.INT8:
        return (Compute.INT8_BF16, Compute.INT8) if has_bfloat16 else (Compute.INT8,)
    return (Compute.FP32, Compute.BF16) if has_bfloat16 else (Compute.FP32,)


def create(settings: Settings) -> Runtime:
    """Make the runtime."""
    return _OpenVino(settings)


@functools.cache
def core() -> Any:
    """The one `openvino.Core` of this process, never destroyed.

    A core that loads the CPU plugin gives its thread a stack for signal handlers, and frees it when
    it is destroyed. When two of them end in the order of their making, or one in another thread,
    the thread is left with a stack that is gone (OpenVINO 2026.4): its next signal, an interrupt or
    the end of a child, is a segmentation fault.
    """
    return _module().Core()


class _OpenVino:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._core = core()

    def load(self, bundle: Bundle, name: GraphName) -> Graph:
        settings = self._settings
        config: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": _HINTS[settings.compute],
            "NUM_STREAMS": settings.streams,
            "PERFORMANCE_HINT": "LATENCY" if settings.streams == 1 else "THROUGHPUT",
        }
        if settings.threads is not None:
            config["INFERENCE_NUM_THREADS"] = settings.threads
        path, spec = bundle.graph(name), bundle.manifest.graphs[name]
        cache = _cache_folder(bundle, name)
        try:
            compiled = self._compile(path, spec, config, cache)
        except Exception as error:  # its exceptions are plain RuntimeErrors
            raise BackendError(
                f"openvino {_module().__version__} cannot load {path.name}: {one_line(error)}"
            ) from None
        return _Compiled(compiled, spec, settings.streams)

    def _compile(
        self, path: Path, spec: GraphSpec, config: dict[str, object], cache: Path | None
    ) -> Any:
        model = self._core.read_model(path)
        model.reshape({tensor.name: _row(tensor) for tensor in spec.inputs})
        if self._settings.compute is Compute.FP32:
            winograd.rewrite(model)
        if cache is None:
            return self._core.compile_model(model, "CPU", config)
        try:
            return self._core.compile_model(model, "CPU", {**config, "CACHE_DIR": str(cache)})
        except Exception as error:
            # A cache is never needed: without it the graph is compiled from the bundle.
            _log.warning("compiled graphs in %s are unusable (%s): removed", cache, one_line(error))
            shutil.rmtree(cache, ignore_errors=True)
            return self._core.compile_model(model, "CPU", config)


class _Compiled:
    """A graph compiled for one row, and one request per stream; a request serves one thread."""

    def __init__(self, compiled: Any, spec: GraphSpec, streams: int) -> None:
        self._inputs = [tensor.name for tensor in spec.inputs]
        self._outputs = {tensor.name: _row(tensor) for tensor in spec.outputs}
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._idle.put(compiled.create_infer_request())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # Inputs are read where they are, so they have to lie in one piece.
        arrays = {name: np.ascontiguousarray(inputs[name]) for name in self._inputs}
        count = max(len(value) for value in arrays.values())
        outputs: dict[str, NDArray[Any]] = {}
        request = self._idle.get()
        try:
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
        except Exception as error:
            raise BackendError(f"openvino failed: {one_line(error)}") from None
        finally:
            self._idle.put(request)
        return outputs


def _row(tensor: TensorSpec) -> list[int]:
    """A tensor's shape with every free dimension 1."""
    return [size if isinstance(size, int) else 1 for size in tensor.shape]


def _cache_folder(bundle: Bundle, name: GraphName) -> Path | None:
    """The folder for one graph of one bundle: named by contents, so a path may hold another."""
    place = os.environ.get(CACHE_VARIABLE)
    if not place:
        return None
    files = bundle.manifest.files
    graph = bundle.manifest.graphs[name].file
    digest = hashlib.sha256(
        "".join(files[file].sha256 for file in (graph, WEIGHTS) if file in files).encode()
    )
    return Path(place) / "openvino" / digest.hexdigest()[:32]


def _module() -> ModuleType:
    try:
        import openvino
    except ImportError as error:
        raise BackendError(
            f"backend openvino cannot be imported ({one_line(error)}): run "
            "pip install 'cris-deploy[openvino]'"
        ) from None
    module: ModuleType = openvino
    return module
