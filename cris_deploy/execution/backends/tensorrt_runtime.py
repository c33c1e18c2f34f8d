"""TensorRT and TensorRT-RTX on NVIDIA GPUs: strongly typed plans that cris-export built.

Both have the same interface. A plan is loaded once; every lane and set of shapes has an execution
context of its own, because a captured CUDA graph holds its context's state. The contexts of a lane
share scratch memory, as they run one after the other.

TensorRT has its kernels in the plan, and any shapes of a profile run with them: shapes are exact.
TensorRT-RTX compiles kernels for a set of shapes when it first comes: batches are padded to a few
sizes, and what was compiled is kept in a file, if there is a folder for it.
"""

import importlib
import logging
from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np

from cris_deploy.bundle import plans
from cris_deploy.bundle.manifest import GraphName, GraphSpec
from cris_deploy.bundle.plans import RuntimeName
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError, one_line
from cris_deploy.execution.backends.interface import Graph, Settings
from cris_deploy.execution.backends.tensorrt_plan import Plan, make_log
from cris_deploy.execution.cuda.device import Lane, open_device
from cris_deploy.execution.cuda.graph import Captured, DeviceGraph, Sizes
from cris_deploy.execution.cuda.memory import DeviceTensor, Memory
from cris_deploy.machine import gpu

_log = logging.getLogger("cris_deploy")


class TensorRt:
    """Either of the two on one GPU.

    name: Which one.
    package: That it is imported from.
    oldest: Its first version that will do.
    settings: How it is to run.
    """

    def __init__(
        self, name: RuntimeName, package: str, oldest: tuple[int, int], settings: Settings
    ) -> None:
        self._name = name
        self._settings = settings
        self.device: Final = open_device(settings.streams, settings.index, settings.timeout)
        upgrade = f"pip install -U 'cris-deploy[{name}]'"
        try:
            self._module = importlib.import_module(package)
        except (ImportError, OSError) as error:  # OSError: a library of it cannot be opened
            raise BackendError(
                f"backend {name} cannot be imported ({one_line(error)}): run {upgrade}"
            ) from None
        version = self._module.__version__
        if tuple(int(part) for part in version.split(".")[:2]) < oldest:
            raise BackendError(
                f"backend {name}: version {version} is installed, at least "
                f"{oldest[0]}.{oldest[1]} is needed: run {upgrade}"
            )
        self._log = make_log(self._module)

    def load(self, bundle: Bundle, name: GraphName) -> Graph:
        """Load a graph's plan; BackendError if there is none that fits, or it is refused."""
        first = gpu.survey_gpus().gpus[self.device.index]
        host = plans.Host(
            self._name, self._module.__version__, first.compute_capability, first.name
        )
        record = plans.choose_plan(bundle, name, host, self._settings.trust_plans)
        if record.version_compatible and not self._settings.plan_code:
            raise BackendError(
                f"{record.file} is version-compatible: it holds machine code for this computer's "
                "processor, which loading runs: take it with Engine(allow_plan_code=True) or "
                "--allow-plan-code if you trust where it came from, or "
                + plans.rebuild_command(bundle, record)
                + ", without --version-compatible"
            )
        plan = Plan(self._module, self._log, bundle, record)
        spec = bundle.manifest.graphs[name]
        plan.check({tensor.name: np.dtype(tensor.dtype.value) for tensor in spec.inputs})
        with self.device.lane() as lane:
            plan.engine(lane.pool)  # fails here if the plan cannot be had
        return DeviceGraph(self.device, spec, _Binder(plan, spec, self._settings.graphs))

    def close(self) -> None:
        """Drop all contexts and their buffers."""
        self.device.close()


class _Binder:
    """Makes a plan run in given shapes; see `cuda.graph.Binder`."""

    def __init__(self, plan: Plan, spec: GraphSpec, graphs: bool) -> None:
        self._plan = plan
        self._symbols = {tensor.name: tensor.shape[0] for tensor in spec.inputs}
        self._graphs = graphs

    def limit(self, shared: Collection[str]) -> int:
        limits = [
            min(held.max[0] for name, held in profile.inputs.items() if name not in shared)
            for profile in self._plan.record.profiles
            if all(profile.inputs[name].min[0] == 1 for name in shared)
        ]
        if not limits:
            raise BackendError(
                f"{self._plan.record.file} has no profile in which {', '.join(shared)} have one "
                "row: build it again with this version's cris-export"
            )
        return max(limits)

    def bucket(self, sizes: Sizes) -> Sizes:
        if self._plan.record.runtime is RuntimeName.TENSORRT:
            return sizes
        most = max(sizes.values())
        shared = [name for name, symbol in self._symbols.items() if sizes[str(symbol)] < most]
        limit = self.limit(shared)
        return {
            symbol: max(size, min(1 << (size - 1).bit_length(), limit))
            for symbol, size in sizes.items()
        }

    def bind(self, lane: Lane, sizes: Sizes, inputs: Mapping[str, DeviceTensor]) -> "_Program":
        with self._plan.guarded("cannot be bound"):
            return _Program(self._plan, lane, inputs, self._graphs)


class _Program:
    """An execution context with its shapes and addresses, and the CUDA graph captured from it."""

    def __init__(
        self, plan: Plan, lane: Lane, inputs: Mapping[str, DeviceTensor], graphs: bool
    ) -> None:
        self._plan = plan
        self._lane = lane
        self._engine = plan.engine(lane.pool)
        self._context = self._make_context()
        self._choose_profile(inputs)
        for name, tensor in inputs.items():
            self._check(self._context.set_input_shape(name, tensor.shape), f"the shape of {name}")
        if missing := self._context.infer_shapes():
            raise self._plan.failure(f"needs {', '.join(missing)} before it can run")
        # Kept, though it may outgrow its use on the lane: a captured graph has its address.
        self._scratch: Memory | None = self._provide_scratch()
        self.outputs = {
            name: lane.empty(tuple(self._context.get_tensor_shape(name)), self._type(name))
            for name in self._names(self._plan.module.TensorIOMode.OUTPUT)
        }
        self._inputs = inputs
        for name, tensor in {**inputs, **self.outputs}.items():
            if tensor.dtype != self._type(name):
                raise self._plan.failure(f"has {name} in {self._type(name)}, not {tensor.dtype}")
            self._check(
                self._context.set_tensor_address(name, tensor.pointer), f"the address of {name}"
            )
        self._capture = graphs
        self._warm = False
        self._graph: Captured | None = None

    def launch(self) -> None:
        # The first run flushes what setting shapes has put off, which cannot be captured.
        if self._warm and self._capture and self._graph is None:
            self._graph = self._try_capture()
        if self._graph is not None:
            self._graph.launch()
            return
        self._enqueue()
        if not self._warm:
            self._plan.keep_kernels()
        self._warm = True

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()
        self._graph = self._context = self._engine = self._scratch = None
        self.outputs.clear()

    def _try_capture(self) -> Captured | None:
        # TensorRT-RTX compiles on this machine, and may still be at it.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._lane.stream.handle):
            return None
        try:
            return Captured(self._lane, self._enqueue)
        except BackendError as error:
            self._capture = False
            _log.warning("%s runs without a CUDA graph: %s", self._plan.record.file, error)
            return None

    def _enqueue(self) -> None:
        with self._plan.guarded("failed to run"):
            if not self._context.execute_async_v3(self._lane.stream.handle):
                raise self._plan.failure("failed to run")

    def _make_context(self) -> Any:
        if self._plan.record.runtime is RuntimeName.TENSORRT_RTX:
            how = self._plan.configure(self._engine)
        else:
            how = self._plan.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(how)
        if context is None:
            raise self._plan.failure("cannot make an execution context")
        return context

    def _choose_profile(self, inputs: Mapping[str, DeviceTensor]) -> None:
        shapes = {name: tensor.shape for name, tensor in inputs.items()}
        profile = self._plan.record.profile_for(shapes)
        if profile is None:
            raise self._plan.failure(
                "has no profile for "
                + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            )
        stream = self._lane.stream.handle
        self._check(
            self._context.set_optimization_profile_async(profile, stream), f"profile {profile}"
        )

    def _provide_scratch(self) -> Memory:
        size = int(self._context.update_device_memory_size_for_shapes())
        scratch = self._lane.scratch(max(size, 1))
        self._context.set_device_memory(scratch.pointer, size)
        return scratch

    def _names(self, mode: Any) -> list[str]:
        names = [
            self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)
        ]
        return [name for name in names if self._engine.get_tensor_mode(name) == mode]

    def _type(self, name: str) -> np.dtype[Any]:
        kind = self._plan.module.nptype(self._engine.get_tensor_dtype(name))
        dtype: np.dtype[Any] = np.dtype(kind)
        return dtype

    def _check(self, worked: bool, what: str) -> None:
        if not worked:
            raise self._plan.failure(f"does not take {what}")
