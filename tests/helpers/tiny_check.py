"""The small bundle's own test, by ONNX Runtime on the CPU."""

from pathlib import Path
from typing import Any, Final

import onnx

from cris_deploy.bundle.manifest import GraphName
from cris_deploy.proof.check import CheckReport, check
from tests.helpers import tiny_bundle as tiny

STAGE_WEIGHTS: Final = {
    GraphName.IMAGE_ENCODER: "mix4",
    GraphName.TEXT_ENCODER: "embedding",
    GraphName.MASK_DECODER: "project",
}
"""The tensor of weights.bin that each stage alone uses."""


def run_check(bundle: Path, **options: Any) -> CheckReport:
    return check(bundle, backend="onnxruntime", device="cpu", **options)


def drop_a_feature(bundle: Path) -> None:
    """Let the decoder read a feature where another should be, and record what it gives then."""
    for name in ("mask_decoder.onnx", "full.onnx"):
        graph = onnx.load(bundle / name, load_external_data=False)
        (join,) = [node for node in graph.graph.node if node.op_type == "Concat"]
        join.input[:] = ["f3", "f4", "f4", "f4"]
        onnx.save(graph, bundle / name)
    tiny.write_answers(bundle)
