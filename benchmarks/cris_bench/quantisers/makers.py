"""Who makes int8 graphs of the same float32 stages and the same calibration pairs.

Every maker reads the stages of a `Reference`, which it may change, and gives the stages in int8.
Weights have 7 bits wherever a tool can do that: with 8 a CPU without VNNI saturates.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
from onnxruntime import quantization as ort

from cris_bench.quantisers.bundles import load_stages
from cris_deploy.bundle.manifest import STAGES, GraphName
from cris_deploy.errors import InputError
from cris_export.precision.int8.calibration import observe
from cris_export.precision.int8.equalise import equalise, find_moves
from cris_export.precision.int8.sites import find_stage_sites
from cris_export.precision.int8.stage import to_int8
from cris_export.precision.ranges import Feed
from cris_export.proof.float32 import Reference

Stages = dict[str, ir.Model]
_PRODUCTS: Final = ["Conv", "MatMul", "Gemm"]


@dataclass(frozen=True)
class Maker:
    """Somebody who makes int8 graphs.

    Attributes:
        name: In the record.
        says: How, in half a sentence.
        make: Gives the stages.
    """

    name: str
    says: str
    make: Callable[[Reference], Stages]


def ours(reference: Reference) -> Stages:
    """`cris-export --int8`, with no budget."""
    models = load_stages(reference.folder)
    to_int8(models, reference, 0.0, lambda line: None)
    return models


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime's `quantize_static`, one call for each stage.

    Attributes:
        unsigned: Activations of 0 to 255 with a zero point, else -127 to 127 without.
        method: How ranges are found.
        sites: Only the layers that ours quantises, behind our moves of scale.
    """

    unsigned: bool = False
    method: ort.CalibrationMethod = ort.CalibrationMethod.MinMax
    sites: bool = False

    def __call__(self, reference: Reference) -> Stages:
        """Quantise."""
        models = {}
        for stage in STAGES:
            only = _prepare(reference, stage) if self.sites else None
            path = reference.folder / f"{stage}.int8.onnx"
            if only == []:
                models[stage.value] = ir.load(reference.graph(stage))
                continue
            ort.quantize_static(
                onnx.load(reference.graph(stage)),
                path,
                _Feeds(reference.feeds[stage]),
                op_types_to_quantize=_PRODUCTS,
                nodes_to_quantize=only,
                per_channel=True,
                reduce_range=True,
                activation_type=ort.QuantType.QUInt8 if self.unsigned else ort.QuantType.QInt8,
                weight_type=ort.QuantType.QInt8,
                calibrate_method=self.method,
                extra_options={"ActivationSymmetric": not self.unsigned, "WeightSymmetric": True},
            )
            models[stage.value] = ir.load(path)
        return models


class _Feeds(ort.CalibrationDataReader):  # type: ignore[misc]  # untyped
    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._rest = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        """The next sample's inputs."""
        feed = next(self._rest, None)
        return None if feed is None else dict(feed)


def _prepare(reference: Reference, stage: GraphName) -> list[str]:
    """Move scale as ours does, in the stage's file; the names of the layers that ours quantises."""
    path = reference.graph(stage)
    model = ir.load(path)
    moves = find_moves(model)
    seen = observe(path, reference.feeds[stage], [move.name for move in moves], "ranges")
    equalise(moves, seen)
    onnx.save(ir.to_proto(model), path)
    return [site.name for site in find_stage_sites(stage, model) if site.whole]


@dataclass(frozen=True)
class Elsewhere:
    """A tool in a Python of its own; `elsewhere.py` says what it calls.

    Attributes:
        python: The interpreter of an environment that has the tool.
        tool: A name that `elsewhere.py` knows.
    """

    python: Path
    tool: str

    def __call__(self, reference: Reference) -> Stages:
        """Run it for each stage; InputError with its last line if it fails."""
        models = {}
        for stage in STAGES:
            feeds, output = (reference.folder / f"{stage}.{kind}" for kind in ("npz", "q.onnx"))
            save_feeds(feeds, reference.feeds[stage])
            script = Path(__file__).with_name("elsewhere.py")
            files = (reference.graph(stage), feeds, output)
            command = [str(part) for part in (self.python, script, self.tool, *files)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode or not output.is_file():
                last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
                raise InputError(f"{self.tool} failed at {stage}: {last.strip()}")
            models[stage.value] = ir.load(output)
        return models


def save_feeds(path: Path, feeds: Sequence[Feed]) -> None:
    """Write samples as one npz: `0/image`, `1/image`, ..."""
    arrays: Mapping[str, Any] = {
        f"{index}/{name}": np.asarray(array)
        for index, feed in enumerate(feeds)
        for name, array in feed.items()
    }
    np.savez(path, **arrays)


def find_makers(nncf: Path | None, modelopt: Path | None) -> list[Maker]:
    """All makers; those that need a Python of their own only if it is given."""
    percentile = ort.CalibrationMethod.Percentile
    makers = [
        Maker("ours", "cris-export --int8", ours),
        Maker("ort s8", "quantize_static, signed, MinMax", OnnxRuntime()),
        Maker("ort u8", "quantize_static, unsigned, MinMax", OnnxRuntime(unsigned=True)),
        Maker("ort s8 percentile", "signed, Percentile", OnnxRuntime(method=percentile)),
        Maker("ort s8 sites", "signed, our layers and moves of scale", OnnxRuntime(sites=True)),
        Maker(
            "ort u8 sites",
            "unsigned, our layers and moves of scale",
            OnnxRuntime(unsigned=True, sites=True),
        ),
    ]
    if nncf is not None:
        makers.append(Maker("nncf", "nncf.quantize, transformer", Elsewhere(nncf, "nncf")))
    if modelopt is not None:
        for tool in ("modelopt-max", "modelopt-entropy"):
            says = f"modelopt.onnx.quantization, {tool.partition('-')[2]}"
            makers.append(Maker(tool, says, Elsewhere(modelopt, tool)))
    return makers


def largest_weight(models: Iterable[ir.Model]) -> int:
    """The largest magnitude of the integers that layers multiply."""
    largest = 0
    for model in models:
        for node in model.graph:
            if node.op_type not in _PRODUCTS or len(node.inputs) < 2:
                continue
            pair = [value.producer() if value else None for value in node.inputs[:2]]
            if not all(one is not None and one.op_type == "DequantizeLinear" for one in pair):
                continue
            stored = pair[1].inputs[0] if pair[1] else None
            if stored is not None and stored.const_value is not None:
                integers = stored.const_value.numpy().astype(np.int32)
                largest = max(largest, int(np.abs(integers).max(initial=0)))
    return largest or 127
