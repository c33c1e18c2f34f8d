"""ONNX Runtime's CUDA provider: a session per lane and set of shapes, bound to device buffers.

Shape arithmetic of free dimensions counts as work for the CPU, which these sessions refuse; fixed
dimensions fold it away. So batches are padded up to a few sizes, each with a session of its own,
which also is what CUDA graphs need. Weights lie on the device once per session.

ONNX Runtime keeps a captured CUDA graph for each thread that ran the session, and captures so that
no other thread may allocate meanwhile. So all runs of a lane are made by the lane's own thread, and
the first of a session while nobody else uses the device.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from cris_deploy.backends import Settings, one_line
from cris_deploy.bundle import Bundle
from cris_deploy.cuda.device import CudaDevice, Lane, open_device
from cris_deploy.cuda.graph import DeviceGraph, Sizes
from cris_deploy.cuda.memory import DeviceTensor
from cris_deploy.errors import BackendError
from cris_deploy.manifest import GraphName, GraphSpec

PROVIDER: Final = "CUDAExecutionProvider"
BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64)
"""Rows of a run; a batch is padded up to the next, so that at most half of a run is padding."""

_ERRORS = 3  # log severity: warnings of a valid bundle help nobody
_OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "cudaerrormemoryallocation")


class CudaRuntime:
    """ONNX Runtime on the first GPU; BackendError if there is none, or no cuda-python."""

    def __init__(self, module: ModuleType, settings: Settings) -> None:
        self._module = module
        self._settings = settings
        self.device: Final = open_device(settings.streams, settings.timeout)

    def load(self, bundle: Bundle, name: GraphName) -> DeviceGraph:
        """Load a graph; fails here if it or the provider cannot be had."""
        spec = bundle.manifest.graphs[name]
        binder = _Binder(self._module, bundle.graph(name), spec, self._settings.graphs)
        graph = DeviceGraph(self.device, spec, binder)
        with self.device.lane() as lane:
            graph.slot(lane, {tensor.name: 1 for tensor in spec.inputs})
        return graph

    def close(self) -> None:
        """Drop all sessions and their buffers."""
        self.device.close()


class _Binder:
    """Makes sessions; see `cuda.graph.Binder`."""

    def __init__(self, module: ModuleType, path: Path, spec: GraphSpec, graphs: bool) -> None:
        self._module = module
        self._path = path
        self._spec = spec
        self._graphs = graphs

    def limit(self, shared: Collection[str]) -> int:
        return BUCKETS[-1]

    def bucket(self, sizes: Sizes) -> Sizes:
        return {
            name: next(bucket for bucket in BUCKETS if bucket >= size)
            for name, size in sizes.items()
        }

    def bind(self, lane: Lane, sizes: Sizes, inputs: Mapping[str, DeviceTensor]) -> "_Program":
        outputs = {
            tensor.name: lane.empty(
                tuple(sizes[side] if isinstance(side, str) else side for side in tensor.shape),
                np.dtype(tensor.dtype.value),
            )
            for tensor in self._spec.outputs
        }
        session = self._session(lane, sizes)
        return _Program(self._module, session, lane, inputs, outputs, self._graphs)

    def _session(self, lane: Lane, sizes: Sizes) -> Any:
        options = self._module.SessionOptions()
        options.log_severity_level = _ERRORS
        for key, value in session_entries().items():
            options.add_session_config_entry(key, value)
        for name, size in sizes.items():
            options.add_free_dimension_override_by_name(name, size)
        provider = (PROVIDER, provider_options(lane, self._graphs))
        try:
            # Without enable_fallback=0 a failing session is made again, on the CPU.
            session = self._module.InferenceSession(
                str(self._path), options, providers=[provider], enable_fallback=0
            )
        except Exception as error:  # its exceptions share no base class
            raise self._failure(lane.device, "cannot load", error) from None
        self._check_assignment(session)
        return session

    def _check_assignment(self, session: Any) -> None:
        # Older versions do not tell; the session option refuses CPU nodes in all of them.
        tell = getattr(session, "get_provider_graph_assignment_info", None)
        if tell is None:
            return
        strangers = sorted(
            {
                f"{node.op_type} {node.name} on {part.ep_name}"
                for part in tell()
                if part.ep_name != PROVIDER
                for node in part.get_nodes()
            }
        )
        if strangers:
            raise BackendError(
                f"onnxruntime put {len(strangers)} nodes of {self._path.name} elsewhere than on "
                f"cuda ({', '.join(strangers[:5])}): export again, or take another backend"
            )

    def _failure(self, device: CudaDevice, what: str, error: Exception) -> BackendError:
        return _failure(self._module, device, f"{what} {self._path.name} on cuda", error)


class _Program:
    """A session, its binding to buffers, and the run that replays its CUDA graph."""

    def __init__(
        self,
        module: ModuleType,
        session: Any,
        lane: Lane,
        inputs: Mapping[str, DeviceTensor],
        outputs: dict[str, DeviceTensor],
        graphs: bool,
    ) -> None:
        self.outputs = outputs
        self._inputs = inputs
        self._module = module
        self._lane = lane
        self._graphs = graphs
        self._captured = False
        self._session = session
        self._options = module.RunOptions()
        # The mask step follows on the same stream: nothing has to wait here.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._binding = session.io_binding()
        for name, tensor in inputs.items():
            self._binding.bind_input(name, *_where(lane, tensor))
        for name, tensor in outputs.items():
            self._binding.bind_output(name, *_where(lane, tensor))

    def launch(self) -> None:
        if not self._graphs:
            self._run()
        elif self._captured:
            self._lane.on_its_thread(self._run)
        else:
            with self._lane.alone():
                self._lane.on_its_thread(self._run)
            self._captured = True

    def close(self) -> None:
        self._binding = self._session = None
        self.outputs.clear()

    def _run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding, self._options)
        except Exception as error:
            raise _failure(self._module, self._lane.device, "failed", error) from None


def session_entries() -> dict[str, str]:
    """Session options that leave no node to the CPU, and let that be checked."""
    return {
        # Without this a session whose CUDA libraries are missing works, on the CPU.
        "session.disable_cpu_ep_fallback": "1",
        "session.record_ep_graph_assignment_info": "1",
    }


def provider_options(lane: Lane, graphs: bool) -> dict[str, str]:
    """Options of the CUDA provider for one lane."""
    return {
        "device_id": str(lane.device.index),
        "user_compute_stream": str(lane.stream.handle),
        "enable_cuda_graph": "1" if graphs else "0",
        # Sizes are fixed, so memory need not be asked for in powers of two.
        "arena_extend_strategy": "kSameAsRequested",
        # TensorFloat-32 keeps 10 bits of a product: what is called fp32 is not to be that.
        "use_tf32": "0",
    }


def device_name() -> str:
    """ONNX Runtime's name of the device that the buffers are on."""
    return "cuda"


def _where(lane: Lane, tensor: DeviceTensor) -> tuple[str, int, Any, tuple[int, ...], int]:
    return device_name(), lane.device.index, tensor.dtype.type, tensor.shape, tensor.pointer


def _failure(module: ModuleType, device: CudaDevice, what: str, error: Exception) -> BackendError:
    text = one_line(error)
    if any(sign in text.lower() for sign in _OUT_OF_MEMORY):
        return device.cuda.out_of_memory()
    return BackendError(f"onnxruntime {module.__version__} {what}: {text}")
