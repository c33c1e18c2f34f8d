"""A plain export in the runtimes that a user has: as it is, in bfloat16, and quantised by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from cris_bench.contestants.contestant import Bound, Identity
from cris_bench.place import Place
from cris_bench.record.rows import Role
from cris_deploy.errors import BackendError, one_line
from cris_deploy.execution.backends import BackendName, Compute, Device, status

FLOATS: Final = (
    (BackendName.OPENVINO, Compute.FP32),
    (BackendName.OPENVINO, Compute.BF16),
    (BackendName.ONNXRUNTIME, Compute.FP32),
)
QUANTISED: Final = (
    (BackendName.OPENVINO, Compute.INT8_BF16),
    (BackendName.OPENVINO, Compute.INT8),
    (BackendName.ONNXRUNTIME, Compute.INT8),
)
NO_BF16: Final = "its provider for CPUs has no bfloat16 arithmetic on x86"
"""Why ONNX Runtime has none in bfloat16."""


def name_of(backend: BackendName, compute: Compute) -> str:
    """The contestant's name in the record."""
    maker = {BackendName.OPENVINO: "NNCF", BackendName.ONNXRUNTIME: "quantize_static"}
    by = f" by {maker[backend]}" if compute in (Compute.INT8, Compute.INT8_BF16) else ""
    return f"{backend} plain export {compute}{by}"


class PlainExport:
    """A graph of the unmodified, whole model for one image and one expression, on the CPU.

    Args:
        path: The graph.
        backend: Runtime.
        compute: Arithmetic.
        threads: CPU threads; None for all.

    Raises:
        BackendError: it is not installed, cannot be loaded, or has not this arithmetic.
    """

    single: Final = True

    def __init__(
        self, path: Path, backend: BackendName, compute: Compute, threads: int | None
    ) -> None:
        who = name_of(backend, compute)
        self.identity = Identity(who, Role.PEER, Place(Device.CPU), compute.value)
        if not status(backend).devices:
            raise BackendError(status(backend).install)
        load = _openvino if backend is BackendName.OPENVINO else _onnxruntime
        try:
            self._run = load(path, compute, threads)
        except BackendError:
            raise
        except Exception as error:  # the runtimes' errors share no base class
            raise BackendError(f"{who} cannot be loaded: {one_line(error)}") from error

    def bind(self, image: NDArray[Any], tokens: NDArray[Any]) -> Bound:
        """Bind; see `Network`."""

        def run() -> NDArray[Any]:
            logits: NDArray[Any] = self._run({"image": image, "tokens": tokens})
            return logits

        return Bound(run, run)


def _onnxruntime(path: Path, compute: Compute, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # its advice about other providers helps nobody here
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, given)[0]


def _openvino(path: Path, compute: Compute, threads: int | None) -> Any:
    from cris_deploy.execution.backends.openvino import core

    half = compute in (Compute.BF16, Compute.INT8_BF16)
    if half and "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise BackendError("this CPU has no bfloat16 instructions")
    config: dict[str, object] = {"INFERENCE_PRECISION_HINT": "bf16" if half else "f32"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    compiled = core().compile_model(core().read_model(path), "CPU", config)
    return lambda given: compiled(given)[0]
