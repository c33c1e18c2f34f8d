"""TensorRT's runtime on the stand-in of `fake_cuda`; an engine computes with ONNX Runtime's CPU.

A "plan" is a line of JSON that names an ONNX file and the profiles. Shapes, addresses, the order of
calls and the state that a captured graph holds are checked as TensorRT's documentation demands.
"""

import hashlib
import json
import weakref
from enum import Enum
from pathlib import Path

import numpy as np
import onnxruntime

from cris_deploy.bundle.manifest import GraphName
from cris_deploy.bundle.plans import (
    PlanRecord,
    Profile,
    RuntimeName,
    ShapeRange,
    folder,
    graph_hashes,
    list_plans,
    plan_name,
    write_sidecar,
)
from cris_deploy.bundle.reading import Bundle
from tests.stand_ins.fake_cuda import POISON, FakeCuda

VERSION = "10.13.2"
GPU = "Fake GPU 1000"
SCRATCH = 4096


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class Strategy(Enum):
    STATIC = 0
    USER_MANAGED = 2


class Specialization(Enum):
    LAZY = 0
    EAGER = 1


class CudaGraphs(Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        pass


class FakeTensorRt:
    """The module `tensorrt`, or `tensorrt_rtx` if `rtx`."""

    __name__ = "tensorrt"
    ILogger = ILogger
    TensorIOMode = TensorIOMode
    ExecutionContextAllocationStrategy = Strategy
    DynamicShapesKernelSpecializationStrategy = Specialization
    CudaGraphStrategy = CudaGraphs

    def __init__(self, cuda: FakeCuda, version: str = VERSION, rtx: bool = False) -> None:
        self.cuda = cuda
        self.__version__ = version
        self.rtx = rtx
        self.contexts = 0
        self.loads = 0
        self.refuse: str | None = None  # the reason why no plan loads
        self.failing_runs = 0
        self.capturable = True
        self.compiled: list[dict[str, tuple[int, ...]]] = []  # TensorRT-RTX: when a run needs it
        self.host_code_allowed: list[bool] = []
        self.raises: dict[str, Exception] = {}  # what a method raises, once

    def may_raise(self, method: str) -> None:
        error = self.raises.pop(method, None)
        if error is not None:
            raise error

    def Runtime(self, log: ILogger) -> "Runtime":
        assert isinstance(log, ILogger)
        return Runtime(self, log)

    @staticmethod
    def nptype(kind: np.dtype) -> type:
        return kind.type


class Runtime:
    def __init__(self, module: FakeTensorRt, log: ILogger) -> None:
        self.module, self.log = module, log
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, content: bytes) -> "Engine | None":
        self.module.loads += 1
        self.module.may_raise("deserialize_cuda_engine")
        if self.module.refuse is not None:
            self.log.log(Severity.WARNING, "this is only a warning")
            self.log.log(Severity.ERROR, self.module.refuse)
            return None
        plan = json.loads(content)
        self.module.host_code_allowed.append(self.engine_host_code_allowed)
        if plan["host_code"] and not self.engine_host_code_allowed:
            self.log.log(Severity.ERROR, "engine_host_code_allowed is false")
            return None
        return Engine(self.module, self.log, plan)


class RuntimeCache:
    """Names of the shapes that were compiled for, a line each."""

    def __init__(self) -> None:
        self.compiled: set[str] = set()

    def serialize(self) -> bytes:
        return "\n".join(sorted(self.compiled)).encode()

    def deserialize(self, blob: bytes) -> bool:
        if blob.startswith(b"broken"):
            return False
        self.compiled.update(blob.decode().split("\n"))
        return True


class RuntimeConfig:
    cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        self.strategy = strategy


class Engine:
    def __init__(self, module: FakeTensorRt, log: ILogger, plan: dict) -> None:
        self.module, self.log, self.plan = module, log, plan
        self.session = onnxruntime.InferenceSession(
            plan["onnx"], providers=["CPUExecutionProvider"]
        )
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        kinds = {"tensor(float)": "f4", "tensor(int64)": "i8", "tensor(bool)": "?"}
        values = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.kinds = {value.name: np.dtype(kinds[value.type]) for value in values}
        self.num_io_tensors = len(values)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> np.dtype:
        return self.kinds[name]

    def create_runtime_config(self) -> RuntimeConfig:
        assert self.module.rtx
        return RuntimeConfig()

    def create_execution_context(self, how: object) -> "Context | None":
        cache = None
        if self.module.rtx:
            assert isinstance(how, RuntimeConfig)
            cache = how.cache
            assert how.dynamic_shapes_kernel_specialization_strategy is Specialization.EAGER
            assert how.cuda_graph_strategy is CudaGraphs.DISABLED
            how = how.strategy
        assert how is Strategy.USER_MANAGED
        if self.module.cuda.device_bytes > self.module.cuda.capacity:
            self.log.log(Severity.ERROR, "Error Code 2: OutOfMemory")
            return None
        self.module.contexts += 1
        return Context(self, cache)


class Context:
    def __init__(self, engine: Engine, cache: RuntimeCache | None) -> None:
        self.engine = engine
        self.cache = cache
        self.module = engine.module
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: int | None = None
        self.state = 0  # of shapes and addresses; a captured graph must find it unchanged
        self.runs = 0
        if engine.module.rtx:
            self.is_stream_capturable = lambda stream: self.module.capturable

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self.module.cuda.streams
        self.profile, self.state = index, self.state + 1
        return 0 <= index < len(self.engine.plan["profiles"])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, high = self.engine.plan["profiles"][self.profile][name]
        if not all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            self.engine.log.log(Severity.ERROR, f"{name} {shape} is outside the profile")
            return False
        self.shapes[name], self.state = shape, self.state + 1
        return True

    def infer_shapes(self) -> list[str]:
        self.module.may_raise("infer_shapes")
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        zeros = {n: np.zeros(self.shapes[n], self.engine.kinds[n]) for n in self.engine.inputs}
        return self.engine.session.run([name], zeros)[0].shape

    def update_device_memory_size_for_shapes(self) -> int:
        assert not self.infer_shapes()
        return SCRATCH * max(shape[0] for shape in self.shapes.values())

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        assert size >= self.update_device_memory_size_for_shapes()
        self.scratch, self.state = memory, self.state + 1

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name], self.state = memory, self.state + 1
        return name in self.engine.kinds

    def execute_async_v3(self, stream: int) -> bool:
        self.module.may_raise("execute_async_v3")
        if self.module.failing_runs:
            self.module.failing_runs -= 1
            self.engine.log.log(Severity.ERROR, "the engine broke")
            return False
        if self.module.rtx:
            kernels = f"{self.engine.inputs} {sorted(self.shapes.items())}"
            if self.cache is None or kernels not in self.cache.compiled:
                self.module.compiled.append(self.shapes)
            if self.cache is not None:
                self.cache.compiled.add(kernels)
        assert self.scratch is not None
        assert set(self.addresses) == {*self.engine.inputs, *self.engine.outputs}
        state, me, cuda = self.state, weakref.ref(self), self.module.cuda

        def work() -> None:
            context = me()
            if context is None:
                cuda.problems.append("a context ended before its run")
                return
            assert context.state == state, "the context changed after it was captured"
            context.compute()

        cuda.enqueue(stream, work)
        return True

    def compute(self) -> None:
        cuda, kinds = self.module.cuda, self.engine.kinds
        size = self.update_device_memory_size_for_shapes()
        cuda.view(self.scratch, (size,), np.uint8)[:] = POISON
        inputs = {
            name: cuda.view(self.addresses[name], self.shapes[name], kinds[name])
            for name in self.engine.inputs
        }
        outputs = self.engine.session.run(self.engine.outputs, inputs)
        for name, value in zip(self.engine.outputs, outputs, strict=True):
            cuda.view(self.addresses[name], value.shape, value.dtype)[:] = value
        self.runs += 1


def write_plans(
    path: Path,
    runtime: RuntimeName = RuntimeName.TENSORRT,
    version: str = VERSION,
    targets: tuple[str, ...] = ("sm86",),
    gpu: str | None = GPU,
    most: int = 8,
    version_compatible: bool = False,
) -> None:
    """Give a bundle plans of all its graphs, for batches up to `most`."""
    bundle = Bundle.open(path)
    records = []
    folder(bundle).mkdir(exist_ok=True)
    for name in GraphName:
        spec = bundle.manifest.graphs[name]
        profiles = [_profile(spec.inputs, most)]
        if name is GraphName.MASK_DECODER:
            profiles.insert(0, _profile(spec.inputs, most, one_image=True))
        short = [{n: (r.min, r.max) for n, r in p.inputs.items()} for p in profiles]
        content = {
            "onnx": str(bundle.graph(name)),
            "profiles": short,
            "host_code": version_compatible,  # its lean runtime
        }
        plan = json.dumps(content).encode()
        file = plan_name(name, runtime, targets)
        (folder(bundle) / file).write_bytes(plan)
        graph_sha256, weights_sha256 = graph_hashes(bundle, name)
        record = PlanRecord(
            file=file,
            graph=name,
            runtime=runtime,
            version=version,
            targets=targets,
            gpu=gpu,
            graph_sha256=graph_sha256,
            weights_sha256=weights_sha256,
            precision=bundle.manifest.precision,
            profiles=tuple(profiles),
            plan_sha256=hashlib.sha256(plan).hexdigest(),
            plan_bytes=len(plan),
            built="2026-11-22T00:00:00Z",
            build_seconds=1.0,
            version_compatible=version_compatible,
            hardware_compatible=False,
            layers={},
            products={},
        )
        write_sidecar(folder(bundle), record)
        records.append(record)
    list_plans(bundle, records)


def _profile(inputs, most: int, one_image: bool = False) -> Profile:
    def shapes(spec) -> ShapeRange:
        top = 1 if one_image and spec.shape[0] == "images" else most
        return ShapeRange(*((rows, *spec.shape[1:]) for rows in (1, top, top)))

    return Profile({spec.name: shapes(spec) for spec in inputs})
