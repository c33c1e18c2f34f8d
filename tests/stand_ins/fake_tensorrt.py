"""TensorRT where there is no GPU: plans run on the stand-in of `fake_cuda`, builds fail as asked.

A "plan" is a line of JSON that names an ONNX file and the profiles; an engine computes with ONNX
Runtime's CPU. Shapes, addresses, the order of calls and the state that a captured graph holds are
checked as TensorRT's documentation demands. Of building only faults, timings and compatible plans
are stood in for: networks, parser and profiles are TensorRT-RTX's own, which need no GPU.
"""

import json
import weakref
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import onnxruntime

from tests.stand_ins.fake_cuda import POISON, FakeCuda

VERSION = "10.13.2"
GPU = "Fake GPU 1000"
SCRATCH = 4096


WHOLE: Any = object()
"""What a build gives if nothing else is asked for: a plan that runs."""

Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
TensorIOMode = Enum("TensorIOMode", "INPUT OUTPUT")
Strategy = Enum("Strategy", "STATIC USER_MANAGED")
Specialization = Enum("Specialization", "LAZY EAGER")
CudaGraphs = Enum("CudaGraphs", "DISABLED WHOLE_GRAPH_CAPTURE")


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

    def __init__(self, cuda: FakeCuda | None, version: str = VERSION, rtx: bool = False) -> None:
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
        self.types: dict[str, np.dtype] = {}  # of tensors, where they differ from the graph's

    def may_raise(self, method: str) -> None:
        error = self.raises.pop(method, None)
        if error is not None:
            raise error

    def Runtime(self, log: ILogger) -> "Runtime":
        assert isinstance(log, self.ILogger)
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
        plan = json.loads(bytes(content))
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
        self.kinds = {value.name: np.dtype(kinds[value.type]) for value in values} | module.types
        self.num_io_tensors = len(values)
        self.num_optimization_profiles = len(plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> np.dtype:
        return self.kinds[name]

    def create_engine_inspector(self) -> "Inspector":
        return Inspector()

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


class Inspector:
    def get_engine_information(self, how: object) -> str:
        return '{"Layers": ["fused"]}'


@dataclass
class Build:
    """What a build was given."""

    typed: bool
    config: "Config"
    cache: bytes


class FakeBuilding(FakeTensorRt):
    """The module `tensorrt` with a builder.

    says: what each build says. mark: is written into its plans. gives: what it gives instead.
    """

    def __init__(self, version: str = VERSION) -> None:
        import tensorrt_rtx

        super().__init__(None, version)
        self.nvidia = tensorrt_rtx
        self.ILogger = tensorrt_rtx.ILogger
        self.says: list[tuple[Severity, str]] = []
        self.mark = ""
        self.gives: bytes | None = WHOLE
        self.builds: list[Build] = []
        self.parsed = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.nvidia, name)

    def Builder(self, log: Any) -> "Builder":
        return Builder(self, log)

    def OnnxParser(self, network: Any, log: Any) -> "Parser":
        return Parser(self, network, log)


class Parser:
    """NVIDIA's own; its path is where a plan of this stand-in finds the graph."""

    def __init__(self, module: FakeBuilding, network: Any, log: Any) -> None:
        self.module = module
        self.real = module.nvidia.OnnxParser(network, log)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def parse(self, model: bytes, path: str) -> bool:
        self.module.parsed = path
        return bool(self.real.parse(model, path))


class Timings:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class Config:
    """NVIDIA's own, but for what its RTX edition lacks: timings and plans for other GPUs."""

    def __init__(self, real: Any, log: Any) -> None:
        self.real, self.log = real, log
        self.profiles: list[Any] = []
        self.cache: Timings | None = None
        self.hardware_compatibility_level: Any = None
        self.progress_monitor: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return int(self.real.add_optimization_profile(profile))

    def create_timing_cache(self, content: bytes) -> Timings:
        if content and not content.startswith(b"cache:"):
            # As TensorRT does: a warning, and an empty cache.
            self.log.log(Severity.WARNING, "Failed to deserialize timing cache.")
            content = b""
        return Timings(content or b"cache:")

    def set_timing_cache(self, cache: Timings, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return b"other GPU" not in cache.content

    def get_timing_cache(self) -> Timings | None:
        return self.cache


class Builder:
    """NVIDIA's own, but for the build: a plan that `Engine` runs, or what was asked for."""

    def __init__(self, module: FakeBuilding, log: Any) -> None:
        self.module, self.log = module, log
        self.real = module.nvidia.Builder(log)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def create_builder_config(self) -> Config:
        return Config(self.real.create_builder_config(), self.log)

    def build_serialized_network(self, network: Any, config: Config) -> Any:
        trt, cache = self.module, config.cache
        assert cache is not None
        typed = network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        trt.builds.append(Build(typed, config, cache.content))
        config.progress_monitor.phase_start("Building", None, 2)
        for step in range(2):
            if not config.progress_monitor.step_complete("Building", step):
                return None
        config.progress_monitor.phase_finish("Building")
        for severity, message in trt.says:
            self.log.log(severity, message)
        config.cache = Timings(cache.content + b"+")
        if trt.gives is not WHOLE:
            return None if trt.gives is None else np.frombuffer(trt.gives, np.uint8)
        names = [network.get_input(index).name for index in range(network.num_inputs)]
        shapes = [{n: [*map(tuple, p.get_shape(n))] for n in names} for p in config.profiles]
        plan = {
            "onnx": trt.parsed,
            "profiles": [{n: (low, high) for n, (low, _, high) in s.items()} for s in shapes],
            "host_code": config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE),
            "mark": trt.mark,
        }
        return np.frombuffer(json.dumps(plan).encode(), np.uint8)
