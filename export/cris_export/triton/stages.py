"""The files of a stage as a model of its own: its ONNX graph, or its TensorRT plans."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cris_deploy.bundle import plans
from cris_deploy.bundle.manifest import GraphName, NumberType, Precision
from cris_deploy.bundle.plans import PlanRecord, RuntimeName
from cris_deploy.bundle.plans.listing import why_not_listed
from cris_deploy.bundle.plans.sidecars import build_command, read_sidecars
from cris_deploy.bundle.reading import WEIGHTS, Bundle
from cris_deploy.errors import BackendError, InputError
from cris_deploy.machine.cpu import EXACT_LEVELS
from cris_export.triton.configs import StageFiles

_INLINE: Final = 1024
"""Bytes of a tensor that stays in the graph's file."""


def require_exact(bundle: Bundle) -> None:
    """Refuse graphs that give wrong masks where ONNX Runtime is not told what our engine tells it.

    Triton's backend can be given a level of optimisation and a number of threads, but not to leave
    a single optimisation out.

    Raises:
        InputError: int8 with float16 between, whose biases it rounds to nothing; or int8 of levels
            that saturate in 16 bits, on processors without VNNI.
    """
    manifest = bundle.manifest
    if manifest.precision is not Precision.INT8:
        return
    half = any(types.nodes.get(NumberType.FLOAT16) for types in manifest.types.values())
    if half or manifest.weight_levels > EXACT_LEVELS:
        kind = "float16 between" if half else f"{manifest.weight_levels} levels"
        raise InputError(
            f"--stages onnxruntime: int8 with {kind} gives wrong masks in Triton's ONNX Runtime: "
            "give --stages none, which leaves the model cris, or --stages tensorrt"
        )


def write_graph(bundle: Bundle, graph: GraphName, folder: Path, max_batch: int) -> StageFiles:
    """Write a graph and, in a file beside it, its own weights and nobody else's.

    A bundle has one file of weights for all graphs. Triton loads each model out of its own folder,
    and model repositories live in object stores, which have no links.
    """
    try:
        import onnx
    except ImportError as error:
        raise InputError(
            f"--stages onnxruntime needs onnx ({error}): pip install 'cris-deploy[export]', or "
            "give --stages none"
        ) from None
    model = onnx.load(bundle.graph(graph))
    onnx.save_model(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location=WEIGHTS,
        size_threshold=_INLINE,
    )
    # As our engine has it: the text encoder in float32, since every pixel reads its results.
    basic = bundle.manifest.precision is Precision.INT8 and graph is GraphName.TEXT_ENCODER
    return StageFiles("onnxruntime_onnx", max_batch, {}, None, basic)


def write_plans(bundle: Bundle, graph: GraphName, folder: Path, max_batch: int) -> StageFiles:
    """Write the TensorRT plans of a stage, one for each compute capability.

    Raises:
        BackendError: the bundle lists none, or they are not what was built.
    """
    chosen: dict[str, PlanRecord] = {}
    for record, sidecar in read_sidecars(bundle):
        built_of = (record.graph_sha256, record.weights_sha256)
        if (
            record.graph is graph
            and record.runtime is RuntimeName.TENSORRT
            and built_of == plans.graph_hashes(bundle, graph)
            and why_not_listed(record, sidecar, bundle) is None
        ):
            for target in record.targets:
                best = chosen.get(target)
                if best is None or _general(record) < _general(best):
                    chosen[target] = record
    if not chosen:
        remedy = build_command(bundle, RuntimeName.TENSORRT, ())
        raise BackendError(f"bundle {bundle.path} lists no TensorRT plan of {graph}: {remedy}")
    by_capability, rows = {}, []
    for target, record in sorted(chosen.items()):
        number = target.removeprefix("sm")
        name = f"{target}.plan"
        (folder / name).write_bytes(plans.read_plan(bundle, record))
        by_capability[f"{number[:-1]}.{number[-1]}"] = name
        rows.append(_widest(record))
    profiles = {profile for profile, _ in rows}
    if len(profiles) > 1:
        raise BackendError(
            f"the plans of {graph} have their profiles in another order: "
            f"{build_command(bundle, RuntimeName.TENSORRT, ())} on each GPU with the same options"
        )
    most = min(max_batch, *(most for _, most in rows))
    return StageFiles("tensorrt_plan", most, by_capability, profiles.pop())


def _general(record: PlanRecord) -> tuple[bool, bool]:
    return record.hardware_compatible, record.version_compatible


def _widest(record: PlanRecord) -> tuple[int, int]:
    """The profile that takes most rows of all inputs, and how many these are.

    A mask decoder has one for many expressions on one image, too, which no batch of Triton's fits.
    """
    most = [min(shape.max[0] for shape in profile.inputs.values()) for profile in record.profiles]
    return most.index(max(most)), max(most)
