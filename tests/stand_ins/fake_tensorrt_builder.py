"""A `tensorrt` made of Python, for what takes a GPU: timings, compatibility, memory, loading.

It has the names and results of TensorRT 10 and 11 that the builder uses. What a build was given is
kept in `FakeTensorRT.builds`; what it should answer is set on the instance. An AttributeError means
that the builder asks for something that the real module may not have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx


class DataType(Enum):
    FLOAT = auto()
    HALF = auto()
    INT8 = auto()
    INT64 = auto()
    BOOL = auto()


_TYPES = {
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "int64": DataType.INT64,
    "bool": DataType.BOOL,
}


class LayerType(Enum):
    CONSTANT = auto()
    CONVOLUTION = auto()
    SOFTMAX = auto()


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class BuilderFlag(Enum):
    TF32 = auto()
    VERSION_COMPATIBLE = auto()


@dataclass
class Tensor:
    name: str
    dtype: DataType


@dataclass
class Layer:
    type: LayerType
    dtype: DataType
    num_outputs: int = 1

    def get_output(self, index: int) -> Tensor:
        return Tensor("", self.dtype)


@dataclass
class Network:
    flags: int
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))
    num_layers = property(lambda self: len(self.layers))

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self.outputs[index]

    def get_layer(self, index: int) -> Layer:
        return self.layers[index]


class TimingCacheContent:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, low: Any, opt: Any, high: Any) -> None:
        self.shapes[name] = (tuple(low), tuple(opt), tuple(high))


class Config:
    """No compute capabilities here: they are TensorRT-RTX's."""

    __slots__ = (
        "cache",
        "flags",
        "hardware_compatibility_level",
        "logger",
        "pools",
        "profiles",
        "profiling_verbosity",
        "progress_monitor",
    )

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.flags = {BuilderFlag.TF32}
        self.pools: dict[str, int] = {}
        self.profiles: list[Profile] = []
        self.cache: TimingCacheContent | None = None
        self.hardware_compatibility_level = "NONE"
        self.profiling_verbosity = None
        self.progress_monitor: Any = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.pools[pool] = size

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> TimingCacheContent:
        if content and not content.startswith(b"cache:"):
            # As TensorRT does: a warning, and an empty cache.
            self.logger.log(Severity.WARNING, "Failed to deserialize timing cache.")
            content = b""
        return TimingCacheContent(content or b"cache:")

    def set_timing_cache(self, cache: TimingCacheContent, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return b"other GPU" not in cache.content

    def get_timing_cache(self) -> TimingCacheContent | None:
        return self.cache


@dataclass
class Build:
    """What a build was given."""

    network: Network
    config: Config
    cache: bytes


class FakeTensorRT(ModuleType):
    """Answers like TensorRT `version` on a GPU.

    products: type of the network's convolutions. says: messages of each build. plan: its result.
    loads: whether a plan can be loaded. outputs: overrides types of a loaded plan's tensors.
    """

    DataType, LayerType, BuilderFlag = DataType, LayerType, BuilderFlag

    class ILogger:
        Severity = Severity

    class IProgressMonitor:
        pass

    class NetworkDefinitionCreationFlag(IntEnum):
        STRONGLY_TYPED = 1

    class ProfilingVerbosity(Enum):
        DETAILED = auto()

    class HardwareCompatibilityLevel(Enum):
        AMPERE_PLUS = auto()

    class MemoryPoolType(Enum):
        WORKSPACE = auto()

    class LayerInformationFormat(Enum):
        JSON = auto()

    def __init__(self, version: str = "10.13.2.6") -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        self.products = DataType.FLOAT
        self.says: list[tuple[Severity, str]] = []
        self.plan: Any = np.frombuffer(b"a plan", np.uint8)
        self.loads = True
        self.outputs: dict[str, DataType] = {}
        self.parses = True
        self.builds: list[Build] = []
        self.host_code_allowed: list[bool] = []

    def Builder(self, logger: Any) -> Any:
        return _Builder(self, logger)

    def OnnxParser(self, network: Network, logger: Any) -> Any:
        return _Parser(self, network)

    def Runtime(self, logger: Any) -> Any:
        return _Runtime(self)


class _Builder:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config(self._logger)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> Any:
        assert config.cache is not None
        self._trt.builds.append(Build(network, config, config.cache.content))
        config.progress_monitor.phase_start("Building", None, 2)
        for step in range(2):
            if not config.progress_monitor.step_complete("Building", step):
                return None
        config.progress_monitor.phase_finish("Building")
        for severity, message in self._trt.says:
            self._logger.log(severity, message)
        config.cache = TimingCacheContent(config.cache.content + b"+")
        return self._trt.plan


class _Parser:
    """Reads the interface; stands in for the layers with one convolution of the set type."""

    num_errors = 1

    def __init__(self, trt: FakeTensorRT, network: Network) -> None:
        self._trt, self._network = trt, network

    def parse(self, model: bytes, path: str) -> bool:
        assert Path(path).is_file()  # beside it lie the weights
        graph = onnx.load_from_string(model).graph
        for values, tensors in (
            (graph.input, self._network.inputs),
            (graph.output, self._network.outputs),
        ):
            for value in values:
                dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
                tensors.append(Tensor(value.name, _TYPES[dtype.name]))
        self._network.layers = [
            Layer(LayerType.CONSTANT, DataType.HALF),  # what is only stored in a type is no proof
            Layer(LayerType.CONVOLUTION, self._trt.products),
            Layer(LayerType.SOFTMAX, DataType.FLOAT),
        ]
        return self._trt.parses

    def get_error(self, index: int) -> str:
        return "In node 7: unsupported operator"


class _Runtime:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: Any) -> Any:
        self._trt.host_code_allowed.append(self.engine_host_code_allowed)
        return _Engine(self._trt) if self._trt.loads else None


class _Engine:
    def __init__(self, trt: FakeTensorRT) -> None:
        build = trt.builds[-1]
        self.num_optimization_profiles = len(build.config.profiles)
        tensors = [*build.network.inputs, *build.network.outputs]
        self._types = {tensor.name: tensor.dtype for tensor in tensors} | trt.outputs

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._types[name]

    def create_engine_inspector(self) -> Any:
        return self

    def get_engine_information(self, how: Any) -> str:
        return '{"Layers": ["fused"]}'
