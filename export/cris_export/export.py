"""A checkpoint becomes a bundle: load, fold, trace, type, write, prove, sign, in this order."""

from __future__ import annotations

import dataclasses
import datetime
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from cris_deploy.bundle import reading as bundles
from cris_deploy.bundle.fingerprints import fingerprint
from cris_deploy.bundle.manifest import MOST_SAMPLES, Quantisation, TypeShare
from cris_deploy.bundle.plans import PlanRecord
from cris_deploy.bundle.reading import GraphName, Precision
from cris_deploy.errors import InputError
from cris_deploy.machine.versions import version_of
from cris_deploy.pixels.mask import mask_from_logits
from cris_deploy.proof.gate import Bound, is_visible, nothing_to_see
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.errors import ParityError
from cris_export.graph import trace
from cris_export.graph.stages import build_stages
from cris_export.graph.tokenizer import write_tokenizer
from cris_export.graph.weights import WeightFile, compose_full
from cris_export.options import ExportOptions
from cris_export.plans.planner import Planner
from cris_export.precision.float16 import to_float16
from cris_export.precision.int8.half import find_float_islands
from cris_export.precision.int8.stage import to_int8
from cris_export.precision.islands import Islands, find_islands
from cris_export.precision.layers import worst_layer
from cris_export.precision.shares import type_share
from cris_export.proof import samples, verify
from cris_export.proof.float32 import Reference, measure_stages, write_reference
from cris_export.proof.samples import Answer, SampleSource
from cris_export.write import BundleWriter
from cris_train import checkpoint as checkpoints
from cris_train.checkpoint import Checkpoint
from cris_train.data.target import THRESHOLD
from cris_train.model import Cris

# Of the bundle's folder while it is written: float32 graphs to measure on.
SCRATCH = ".float32"
# A pair costs a second or two at full size; a hundred show the ranges as well as a thousand.
MOST_CALIBRATION = 128
VERSIONS_OF = ("cris-deploy", "torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime")

_REMEDIES = {
    Precision.FP32: "report it with the checkpoint's architecture",
    Precision.FP16: "export without --fp16",
    Precision.INT8: "calibrate on more images like those to come, export without --int8",
}
_BUDGET_REMEDIES = {
    Bound.MASK_IOU: ", or lower --min-iou",
    Bound.LOGIT_ERROR: ", or raise --max-logit-error",
    Bound.STAGE_ERROR: ", or raise --max-logit-error",
}


@dataclass(frozen=True)
class ExportReport:
    """What came out.

    Attributes:
        bundle: The directory.
        checkpoint: What was read.
        parity: The gate's figures.
        types: Nodes, bytes and multiply-adds per type.
        sizes: File name -> bytes, of all files that the manifest lists.
        plans: What the sidecars of the plans say that were built.
        warnings: What went wrong with that was not asked for.
    """

    bundle: Path
    checkpoint: Checkpoint
    parity: verify.ParityReport
    types: dict[GraphName, TypeShare]
    sizes: dict[str, int]
    plans: tuple[PlanRecord, ...]
    warnings: tuple[str, ...] = ()


def export(options: ExportOptions, step: Callable[[str], None] = lambda _: None) -> ExportReport:
    """Export a checkpoint.

    Args:
        options: What and how.
        step: Called with a short line before each step, for progress.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        InputError: an option cannot be used.
        BackendError: a plan or backend that was asked for by name cannot be had.
        ParityError: the exported graphs missed a bound of the gate; no bundle was left behind.
    """
    verify.require(options.asked)
    planner = Planner(options.plans, step)  # what cannot be had is refused before the work
    sources = _read_pairs(options.samples, "--samples")
    if len(sources) > MOST_SAMPLES:
        raise InputError(f"--samples {options.samples}: give at most {MOST_SAMPLES:,} lines")
    pairs = _read_pairs(options.calibration, "--calibration") if options.calibration else []
    step(f"reading {options.checkpoint}")
    checkpoint = checkpoints.load(options.checkpoint, word_len=options.word_len)
    model = checkpoints.build(checkpoint)
    with BundleWriter(options.bundle) as writer:
        folder = writer.directory
        write_tokenizer(folder / bundles.TOKENIZER)
        tokenizer = Tokenizer.from_file(folder / bundles.TOKENIZER, model.config.word_len)
        step(f"asking FP32 PyTorch about {len(sources)} samples")
        answers = samples.answer_samples(model, sources, tokenizer)
        if options.gate:
            _require_visible(answers, model.config.input_size)
        step(f"tracing {checkpoint.config.architecture} to ONNX, opset {options.opset}")
        traced = trace.trace_stages(build_stages(model), model.config, options.opset)
        islands: dict[str, Islands] = {}
        kept: dict[str, dict[str, str]] = {}
        reference = None
        quantisation: Quantisation | None = None
        size, scratch = model.config.input_size, folder / SCRATCH
        if options.precision is Precision.FP16:
            step("measuring in float32 what float16 can hold")
            reference = write_reference(scratch, traced, sources, tokenizer, size)
            islands = find_islands(traced, measure_stages(reference))
            kept = {name: dict(island.nodes) for name, island in islands.items()}
        if options.precision is Precision.INT8:
            step(f"calibrating int8 on {min(len(pairs), MOST_CALIBRATION)} of {len(pairs)} pairs")
            reference = write_reference(
                scratch, traced, pairs, tokenizer, size, "--calibration", MOST_CALIBRATION
            )
            least = options.correlation_budget if options.gate else 0.0
            kept, quantisation = to_int8(traced, reference, least, step)
            if options.half:
                step("measuring what of the rest float16 can hold")
                islands = find_float_islands(traced, reference)
                kept = {name: {**islands[name].nodes, **kept[name]} for name in kept}
        protos, types = _type_and_write(traced, islands, kept, folder)
        manifest = bundles.Manifest(
            model=_facts(checkpoint, model),
            precision=options.precision,
            opset=options.opset,
            graphs={GraphName(name): _graph_spec(name, proto) for name, proto in protos.items()},
            types=types,
            versions=_versions(),
            samples=samples.write_samples(folder, answers),
            parity=None,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            files={},
            quantisation=quantisation,
            weights=fingerprint(folder, {GraphName(name): f"{name}.onnx" for name in protos}),
        )
        manifest = writer.write_manifest(manifest)
        del model, protos
        gc.collect()
        plans = planner.build(folder, options.bundle)
        manifest = bundles.Bundle.open(folder, verify=False).manifest  # lists the plans, too
        parity = verify.prove(
            folder,
            options.budget,
            step,
            max_logit_error=options.max_logit_error,
            asked=options.asked,
        )
        if options.gate and not parity.passed:
            raise ParityError(_failure(parity, options, reference, folder))
        record = dataclasses.replace(
            parity.record(), unproved=(*planner.warnings, *parity.unproved)
        )
        manifest = writer.write_manifest(dataclasses.replace(manifest, parity=record))
        if options.signer is not None:
            options.signer.sign(folder)
        writer.commit()
    sizes = {name: record.bytes for name, record in manifest.files.items()}
    warnings = tuple(planner.warnings)
    return ExportReport(options.bundle, checkpoint, parity, types, sizes, plans, warnings)


def _require_visible(answers: Sequence[Answer], size: int) -> None:
    """Refuse at once what the gate would refuse after minutes: there is nothing to compare."""
    empty = 0
    for answer in answers:
        mask = mask_from_logits(answer.logits, answer.height, answer.width, size, THRESHOLD)
        if is_visible(answer.logits, mask, size, THRESHOLD):
            return
        empty += not mask.any()
    said = nothing_to_see(empty, len(answers) - empty)
    raise ParityError(f"parity gate: {said}; no bundle was written")


def _read_pairs(path: Path | None, flag: str) -> list[SampleSource]:
    """The pairs, whose images are looked for at once: tracing takes longer than a typing error."""
    pairs = samples.read_samples(path, flag)
    lost = [pair.image for pair in pairs if not pair.image.is_file()]
    if lost:
        raise InputError(f"{flag} {path}: {lost[0]} does not exist ({len(lost)} missing)")
    return pairs


def _type_and_write(
    traced: dict[str, ir.Model],
    islands: Mapping[str, Islands],
    kept: dict[str, dict[str, str]],
    folder: Path,
) -> tuple[dict[str, onnx.ModelProto], dict[GraphName, TypeShare]]:
    """Write the four graphs, float16 if there are islands in them; `traced` is used up.

    The weights go to one file. `kept` says what stays in float32, and why.
    """
    protos: dict[str, onnx.ModelProto] = {}
    with WeightFile(folder) as weights:
        for name in list(traced):
            graph = traced.pop(name)
            if name in islands:
                to_float16(graph, islands[name], keep=frozenset({"image", "logits"}))
            weights.externalise(graph)
            protos[name] = ir.to_proto(graph)
    protos["full"] = compose_full(list(protos.values()))
    whole = {f"{name}/{node}": why for name in kept for node, why in kept[name].items()}
    for name, proto in protos.items():
        path = folder / f"{name}.onnx"
        onnx.save(proto, path)
        onnx.checker.check_model(str(path), full_check=True)
    kept = {**kept, "full": whole}
    return protos, {
        GraphName(name): type_share(proto, kept.get(name)) for name, proto in protos.items()
    }


def _facts(checkpoint: Checkpoint, model: Cris) -> bundles.ModelFacts:
    config = checkpoint.config
    return bundles.ModelFacts(
        architecture=config.architecture,
        input_size=config.input_size,
        mask_size=config.mask_size,
        word_len=config.word_len,
        context_length=config.context_length,
        threshold=THRESHOLD,
        decoder_layers=config.decoder_layers,
        contrastive=config.contrastive,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        checkpoint_sha256=checkpoint.sha256,
    )


def _graph_spec(name: str, proto: onnx.ModelProto) -> bundles.GraphSpec:
    def specs(values: Sequence[onnx.ValueInfoProto]) -> tuple[bundles.TensorSpec, ...]:
        return tuple(
            bundles.TensorSpec(
                value.name,
                bundles.DType(
                    onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
                ),
                tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
            )
            for value in values
        )

    return bundles.GraphSpec(f"{name}.onnx", specs(proto.graph.input), specs(proto.graph.output))


def _failure(
    parity: verify.ParityReport, options: ExportOptions, reference: Reference | None, folder: Path
) -> str:
    failed = "; ".join(
        f"{report.choice.backend} {report.choice.version} on {report.choice.device} in "
        f"{report.choice.compute}: {report.problem}"
        for report in parity.failures
    )
    missed = parity.missed
    remedy = _REMEDIES[options.precision]
    if Bound.FINITE not in missed:
        remedy += "".join(_BUDGET_REMEDIES[bound] for bound in _BUDGET_REMEDIES if bound in missed)
    if not options.asked.named and len(parity.required) > len(parity.failures):
        remedy += ", or name with --backend and --device what has to prove it"
    layer = None if reference is None else worst_layer(reference, folder, parity.worst_stages)
    if layer is not None:
        failed += f"; worst layer: {layer}"
    return f"parity gate: {failed}; no bundle was written: {remedy}"


def _versions() -> dict[str, str]:
    return {name: version_of(name) or "not installed" for name in VERSIONS_OF}
