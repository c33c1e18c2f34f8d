"""A plain export in the runtimes that a user has, at their defaults; `plain_export` makes it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cris_bench.contestants.contestant import Bound, Identity
from cris_bench.place import Place
from cris_bench.record.rows import Role
from cris_bench.record.schema import Absent
from cris_deploy.execution.backends import BackendName, Compute, Device, status

# OpenVINO's names of the types it computes in.
_COMPUTES = {"f32": Compute.FP32, "bf16": Compute.BF16, "f16": Compute.FP16}


def plain_peers(
    path: Path, threads: int | None
) -> tuple[list[OnnxRuntime | OpenVino], list[Absent]]:
    """Load a plain export with every runtime there is; those that are not installed."""
    peers: list[OnnxRuntime | OpenVino] = []
    absent = []
    if _installed(BackendName.ONNXRUNTIME):
        peers.append(OnnxRuntime(path, threads))
    else:
        absent.append(_absent(BackendName.ONNXRUNTIME))
    if _installed(BackendName.OPENVINO):
        default = OpenVino(path, threads)
        peers.append(default)
        if default.identity.compute != Compute.FP32:
            peers.append(OpenVino(path, threads, "f32"))
    else:
        absent.append(_absent(BackendName.OPENVINO))
    return peers, absent


class OnnxRuntime:
    """ONNX Runtime with its default options, on the CPU."""

    def __init__(self, path: Path, threads: int | None) -> None:
        import onnxruntime

        self.identity = Identity(
            "onnxruntime plain export fp32", Role.PEER, Place(Device.CPU), Compute.FP32.value
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def bind(self, image: NDArray[Any], tokens: NDArray[Any]) -> Bound:
        """Bind; see `Network`."""

        def run() -> NDArray[Any]:
            logits: NDArray[Any] = self._session.run(None, {"image": image, "tokens": tokens})[0]
            return logits

        return Bound(run, run)


class OpenVino:
    """OpenVINO on the CPU: in the arithmetic of its choice, or in the one that is hinted."""

    def __init__(self, path: Path, threads: int | None, hint: str | None = None) -> None:
        import openvino

        from cris_deploy.execution.backends.openvino import core

        config: dict[str, object] = {}
        if hint is not None:
            config["INFERENCE_PRECISION_HINT"] = hint
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        self._compiled = core().compile_model(openvino.convert_model(str(path)), "CPU", config)
        kind = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        compute = _COMPUTES[kind]
        self.identity = Identity(
            f"openvino plain export {compute}", Role.PEER, Place(Device.CPU), compute.value
        )

    def bind(self, image: NDArray[Any], tokens: NDArray[Any]) -> Bound:
        """Bind; see `Network`."""

        def run() -> NDArray[Any]:
            logits: NDArray[Any] = self._compiled({"image": image, "tokens": tokens})[0]
            return logits

        return Bound(run, run)


def _installed(backend: BackendName) -> bool:
    return importlib.util.find_spec(backend.value) is not None


def _absent(backend: BackendName) -> Absent:
    return Absent(f"{backend} plain export", status(backend).install)
