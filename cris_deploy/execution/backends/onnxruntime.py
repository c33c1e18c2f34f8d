"""ONNX Runtime on the CPU; `onnxruntime_cuda` is its other half."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from numpy.typing import NDArray

from cris_deploy.bundle.manifest import GraphName, NumberType, Precision
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError, CrisError, one_line
from cris_deploy.execution.backends.interface import Compute, Device, Graph, Runtime, Settings
from cris_deploy.machine.cpu import saturates, this_cpu
from cris_deploy.machine.memory import enough_memory

PACKAGE: Final = "onnxruntime"
DISTRIBUTIONS: Final = ("onnxruntime", "onnxruntime-gpu")
INSTALL: Final = "pip install 'cris-deploy[cpu]'"
DEVICES: Final = (Device.CPU, Device.CUDA)
REMEDIES: Final = {
    Device.CUDA: "run pip uninstall onnxruntime && pip install 'cris-deploy[gpu]', or drop the "
    "device option",
    Device.CPU: f"run {INSTALL}",
}

_PROVIDERS = {Device.CPU: "CPUExecutionProvider", Device.CUDA: "CUDAExecutionProvider"}
# 1.32 crashes (SIGSEGV) on loading a float16 Transpose whose reader is a MatMul with weights: the
# two become a FusedMatMul, which has no float16 kernel on a CPU.
# And it quantises biases to the product of two step sizes, which in float16 rounds to nothing:
# the demo's masks, in int8 with float16 between, then had a mean IoU of 0.29.
_UNSAFE_IN_HALF = ["MatmulTransposeFusion", "WeightBiasQuantization"]
_WARNINGS_AND_BELOW = 3  # log only errors: warnings of a valid bundle help nobody


def installed_devices() -> tuple[Device, ...]:
    """Name the devices this installation was built for; whether CUDA works shows on loading."""
    available = _module().get_available_providers()
    return tuple(device for device, provider in _PROVIDERS.items() if provider in available)


def computes(precision: Precision, device: Device) -> tuple[Compute, ...]:
    """Give the arithmetic of a typed graph, the one `auto` takes first.

    The CUDA provider has no int8 products: it rounds to int8, and multiplies in float32. On x86 its
    products of signed bytes are slower than those of float32, with VNNI, too (decision 19).
    """
    if precision is not Precision.INT8:
        return (Compute(precision.value),)
    if device is Device.CUDA:
        return (Compute.FP32,)
    slow = this_cpu().is_x86
    return (Compute.FP32, Compute.INT8) if slow else (Compute.INT8, Compute.FP32)


def create(settings: Settings) -> Runtime:
    """Make the runtime; BackendError for more than one stream on a CPU, and for no GPU."""
    if settings.device is Device.CUDA:
        from cris_deploy.execution.backends.onnxruntime_cuda import CudaRuntime

        return CudaRuntime(_module(), settings)
    if settings.streams > 1:
        raise BackendError(
            f"streams is {settings.streams}: onnxruntime has none on a CPU; take backend openvino, "
            "or leave streams at 1 and call the engine from several threads"
        )
    return _OnnxRuntime(settings)


class _OnnxRuntime:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def load(self, bundle: Bundle, name: GraphName) -> Graph:
        return _Session(
            bundle.graph(name),
            self._settings.threads,
            half=bool(bundle.manifest.types[name].nodes.get(NumberType.FLOAT16)),
            unpack=name is GraphName.TEXT_ENCODER,
            unround=self._settings.compute is Compute.FP32,
            widen=saturates(bundle.manifest.weight_levels),
        )

    def close(self) -> None:
        """Do nothing: a session ends with its graph."""


class _Session:
    """One session. `Run` of ONNX Runtime is thread-safe.

    half: the graph is typed float16.
    unpack: weights stored in int8 are float32 from loading on. All of the text encoder's are, since
        every pixel reads its results, and its kernel for int8 weights is six times slower.
    unround: products are float32, and what rounds between them is taken out.
    widen: int8 products are added in 32 bits at once, slower, where 16 bits would saturate.
    """

    def __init__(
        self,
        path: Path,
        threads: int | None,
        *,
        half: bool = False,
        unpack: bool = False,
        unround: bool = False,
        widen: bool = False,
    ) -> None:
        onnxruntime = _module()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _WARNINGS_AND_BELOW
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # Three sessions, three thread pools: one that is done must not spin beside the next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Where weights alone are int8, products are float32 (level 1); the default, 4, rounds their
        # inputs at run time, too.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if unpack or unround:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if unround:
            options.add_session_config_entry("session.enable_quant_qdq_cleanup", "1")
        if widen:
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            with enough_memory(f"onnxruntime loaded {path.name}"):
                self._session = onnxruntime.InferenceSession(
                    str(path),
                    options,
                    providers=[_PROVIDERS[Device.CPU]],
                    disabled_optimizers=_UNSAFE_IN_HALF if half else None,
                )
        except CrisError:
            raise
        except Exception as error:  # its exceptions share no base class
            raise BackendError(
                f"onnxruntime {onnxruntime.__version__} cannot load {path.name} on cpu: "
                f"{one_line(error)}: copy or export the bundle again, or take another backend"
            ) from None
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            with enough_memory("onnxruntime ran"):
                values = self._session.run(self._outputs, dict(inputs))
        except CrisError:
            raise
        except Exception as error:
            raise BackendError(f"onnxruntime failed: {one_line(error)}") from None
        return dict(zip(self._outputs, values, strict=True))


def _module() -> ModuleType:
    try:
        with enough_memory("onnxruntime was imported"):
            import onnxruntime
    except ImportError as error:
        raise BackendError(
            f"backend onnxruntime cannot be imported ({one_line(error)}): run {INSTALL}"
        ) from None
    module: ModuleType = onnxruntime
    return module
