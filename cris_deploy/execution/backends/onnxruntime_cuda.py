"""ONNX Runtime's CUDA provider: a session per lane and graph, bound to device buffers.

No node may run on the CPU, and the graphs have none that would: no arithmetic on shapes, no
operator without a CUDA kernel. So one session, with one copy of the weights, serves every size of
a batch. Batches are padded up to a few sizes, each with buffers and a CUDA graph of its own.

ONNX Runtime keeps captured CUDA graphs for each thread that ran the session, and captures so that
no other thread may allocate meanwhile. So all runs of a lane are made by the lane's own thread, and
those that capture while nobody else uses the device.
"""

import itertools
import logging
import weakref
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any, Final

import numpy as np

from cris_deploy.bundle.manifest import GraphName
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError
from cris_deploy.execution.backends import Settings, one_line
from cris_deploy.execution.backends.cuda_libraries import load_libraries
from cris_deploy.execution.cuda.device import CudaDevice, Lane, open_device
from cris_deploy.execution.cuda.graph import DeviceGraph, Sizes
from cris_deploy.execution.cuda.memory import DeviceTensor

PROVIDER: Final = "CUDAExecutionProvider"
BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64)
"""Rows of a run; a batch is padded up to the next, so that at most half of a run is padding."""
CAPTURES_SINCE: Final = (1, 30)
"""Version from which replays are right: before, Concat, Split and MatMul had the pointers for their
kernels copied again from memory that had been given back."""

_log = logging.getLogger("cris_deploy")

_ERRORS = 3  # log severity: warnings of a valid bundle help nobody
_UNCAPTURED = "-1"  # a run with this number of a CUDA graph is just run
_CPU_NODES = "fallback to CPU EP has been explicitly disabled"
_OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "cudaerrormemoryallocation")


class CudaRuntime:
    """ONNX Runtime on one GPU; BackendError if the GPU, its driver or a library is missing."""

    def __init__(self, module: ModuleType, settings: Settings) -> None:
        load_libraries(module, settings.index)
        self._module = module
        self._graphs = settings.graphs and _captures(module)
        self.device: Final = open_device(settings.streams, settings.index, settings.timeout)

    def load(self, bundle: Bundle, name: GraphName) -> DeviceGraph:
        """Load a graph; fails here if it or the provider cannot be had."""
        spec = bundle.manifest.graphs[name]
        binder = _Binder(self._module, bundle, name, self._graphs)
        graph = DeviceGraph(self.device, spec, binder)
        with self.device.lane() as lane:
            graph.slot(lane, {tensor.name: 1 for tensor in spec.inputs})
        return graph

    def close(self) -> None:
        """Drop all sessions and their buffers."""
        self.device.close()


class _Session:
    """A session and the numbers of its CUDA graphs; ends with the last program that runs it."""

    def __init__(self, session: Any) -> None:
        self.session: Final = session
        self.numbers: Final = itertools.count(1)


class _Binder:
    """Makes sessions; see `cuda.graph.Binder`."""

    def __init__(self, module: ModuleType, bundle: Bundle, name: GraphName, graphs: bool) -> None:
        self._module = module
        self._path = bundle.graph(name)
        self._spec = bundle.manifest.graphs[name]
        self._unchanged: Callable[[], None] = lambda: bundle.require_unchanged([name])
        self._graphs = graphs
        # A lane is dropped with its programs, and all that they hold has to be free at once.
        self._sessions: weakref.WeakKeyDictionary[Lane, weakref.ref[_Session]] = (
            weakref.WeakKeyDictionary()
        )

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
        kept = self._sessions.get(lane)
        session = None if kept is None else kept()
        if session is None:
            session = _Session(self._load(lane))
            self._sessions[lane] = weakref.ref(session)
        return _Program(self._module, session, lane, inputs, outputs, self._graphs)

    def _load(self, lane: Lane) -> Any:
        options = self._module.SessionOptions()
        options.log_severity_level = _ERRORS
        for key, value in session_entries().items():
            options.add_session_config_entry(key, value)
        provider = (PROVIDER, provider_options(lane, self._graphs))
        try:
            # Without enable_fallback=0 a failing session is made again, on the CPU.
            session = self._module.InferenceSession(
                str(self._path), options, providers=[provider], enable_fallback=0
            )
        except Exception as error:  # its exceptions share no base class
            self._unchanged()
            raise self._failure(lane.device, "cannot load", error) from None
        self._unchanged()
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
        if _CPU_NODES in str(error):
            return BackendError(
                f"onnxruntime {self._module.__version__} has no CUDA kernel for a node of "
                f"{self._path.name}: export the bundle again with this version of cris-export, or "
                "take another backend"
            )
        return _failure(self._module, device, f"{what} {self._path.name} on cuda", error)


class _Program:
    """A session's binding to buffers, and the run that replays its CUDA graph for them."""

    def __init__(
        self,
        module: ModuleType,
        session: _Session,
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
        self._session: _Session | None = session
        self._plain = _run_options(module, _UNCAPTURED)
        self._replayed = _run_options(module, str(next(session.numbers)))
        self._binding = session.session.io_binding()
        for name, tensor in inputs.items():
            self._binding.bind_input(name, *_where(lane, tensor))
        for name, tensor in outputs.items():
            self._binding.bind_output(name, *_where(lane, tensor))

    def launch(self) -> None:
        if not self._graphs:
            self._run(self._plain)
        elif self._captured:
            self._lane.on_its_thread(lambda: self._run(self._replayed))
        else:
            # In company: memory is found here, and the algorithms of convolutions.
            self._lane.on_its_thread(lambda: self._run(self._plain))
            with self._lane.alone():
                self._lane.on_its_thread(lambda: self._run(self._replayed))
            self._captured = True

    def close(self) -> None:
        self._binding = self._session = None
        self.outputs.clear()

    def _run(self, options: Any) -> None:
        assert self._session is not None  # closed slots are in nobody's hands
        try:
            self._session.session.run_with_iobinding(self._binding, options)
        except Exception as error:
            raise _failure(self._module, self._lane.device, "failed", error) from None


def _run_options(module: ModuleType, graph: str) -> Any:
    options = module.RunOptions()
    # The mask step follows on the same stream: nothing has to wait here.
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    options.add_run_config_entry("gpu_graph_id", graph)
    return options


def _captures(module: ModuleType) -> bool:
    """Whether this version's CUDA graphs are right; a warning if not."""
    version = tuple(int(part) for part in module.__version__.split(".")[:2])
    if version < CAPTURES_SINCE:
        _log.warning(
            "onnxruntime %s runs without CUDA graphs, which it replays wrongly: run pip install "
            "'onnxruntime-gpu>=%d.%d'",
            module.__version__,
            *CAPTURES_SINCE,
        )
    return version >= CAPTURES_SINCE


def session_entries() -> dict[str, str]:
    """Session options that leave no node to the CPU, and let that be checked."""
    return {
        # Without this a session whose CUDA libraries are missing works, on the CPU.
        "session.disable_cpu_ep_fallback": "1",
        "session.record_ep_graph_assignment_info": "1",
        # Quantised graphs are rewritten for kernels that the CPU has: biases get an int32
        # DequantizeLinear, which CUDA has not. Left alone, weights become floats on loading.
        "session.disable_quant_qdq": "1",
    }


def provider_options(lane: Lane, graphs: bool) -> dict[str, str]:
    """Options of the CUDA provider for one lane."""
    return {
        "device_id": str(lane.device.index),
        "user_compute_stream": str(lane.stream.handle),
        "enable_cuda_graph": "1" if graphs else "0",
        # Sizes are few, so memory need not be asked for in powers of two.
        "arena_extend_strategy": "kSameAsRequested",
        # A search would take the kernel that was fastest once, for each lane and size of a batch:
        # logits would differ in their last bits from start to start.
        "cudnn_conv_algo_search": "HEURISTIC",
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
