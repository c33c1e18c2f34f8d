"""OpenVINO, on CPUs: float32, bfloat16 where the processor has it, and int8."""

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

from cris_deploy.backends import Compute, Device, Graph, Runtime, Settings, one_line
from cris_deploy.bundle import WEIGHTS, Bundle
from cris_deploy.errors import BackendError
from cris_deploy.manifest import GraphName, Precision

_log = logging.getLogger("cris_deploy")

CACHE_VARIABLE: Final = "CRIS_DEPLOY_CACHE"
"""Folder of compiled graphs; "off" for none. By default cris-deploy in the user's cache folder."""

REMEDIES = {Device.CUDA: "take backend tensorrt or onnxruntime, or device cpu"}

# What float arithmetic is left to: OpenVINO's default is bfloat16 wherever the processor has it.
_HINTS = {Compute.FP32: "f32", Compute.BF16: "bf16", Compute.INT8: "f32"}


def devices() -> tuple[Device, ...]:
    """Name the devices: the CPU."""
    _module()
    return (Device.CPU,)


def computes(precision: Precision, device: Device) -> tuple[Compute, ...]:
    """Give the arithmetic for a stored precision, the one `auto` takes first.

    Float16 weights are computed in float32 by default, which can only be closer to the original.
    """
    if precision is Precision.INT8:
        return (Compute.INT8,)
    capabilities = _module().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    bfloat = (Compute.BF16,) if "BF16" in capabilities else ()
    return (Compute.FP32, *bfloat)


def create(settings: Settings) -> Runtime:
    """Make the runtime."""
    return _OpenVino(settings)


class _OpenVino:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._core = _module().Core()

    def load(self, bundle: Bundle, name: GraphName) -> Graph:
        settings = self._settings
        config: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": _HINTS[settings.compute],
            "NUM_STREAMS": settings.streams,
            "PERFORMANCE_HINT": "LATENCY" if settings.streams == 1 else "THROUGHPUT",
        }
        if settings.threads is not None:
            config["INFERENCE_NUM_THREADS"] = settings.threads
        path = bundle.graph(name)
        cache = _cache_folder(bundle, name)
        try:
            compiled = self._compile(path, config, cache)
        except Exception as error:  # its exceptions are plain RuntimeErrors
            raise BackendError(
                f"openvino {_module().__version__} cannot load {path.name}: {one_line(error)}"
            ) from None
        return _Compiled(compiled, settings.streams)

    def _compile(self, path: Path, config: dict[str, object], cache: Path | None) -> Any:
        if cache is None:
            return self._core.compile_model(path, "CPU", config)
        try:
            return self._core.compile_model(path, "CPU", {**config, "CACHE_DIR": str(cache)})
        except Exception as error:
            # A cache is never needed: without it the graph is compiled from the bundle.
            _log.warning("compiled graphs in %s are unusable (%s): removed", cache, one_line(error))
            shutil.rmtree(cache, ignore_errors=True)
            return self._core.compile_model(path, "CPU", config)


class _Compiled:
    """A compiled graph and one request per stream; a request serves one thread at a time."""

    def __init__(self, compiled: Any, streams: int) -> None:
        self._outputs = [output.get_any_name() for output in compiled.outputs]
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._idle.put(compiled.create_infer_request())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        # Inputs are read where they are, so they have to lie in one piece.
        arrays = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        request = self._idle.get()
        try:
            request.infer(arrays, share_inputs=True)
            # Copies: the request's own memory belongs to its next run.
            return {name: request.get_tensor(name).data.copy() for name in self._outputs}
        except Exception as error:
            raise BackendError(f"openvino failed: {one_line(error)}") from None
        finally:
            self._idle.put(request)


def _cache_folder(bundle: Bundle, name: GraphName) -> Path | None:
    """The folder for one graph of one bundle: named by contents, so a path may hold another."""
    place = os.environ.get(CACHE_VARIABLE)
    if place == "off":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cris-deploy"
    files = bundle.manifest.files
    graph = bundle.manifest.graphs[name].file
    digest = hashlib.sha256(
        "".join(files[file].sha256 for file in (graph, WEIGHTS) if file in files).encode()
    )
    return (Path(place) if place else home) / "openvino" / digest.hexdigest()[:32]


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
