"""A checkpoint becomes a bundle: load, fold, trace, type, write, prove, in this order."""

from __future__ import annotations

import dataclasses
import datetime
import gc
import importlib.metadata
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from cris_deploy import bundle as bundles
from cris_deploy.bundle import BundleWriter, GraphName, Precision
from cris_deploy.errors import InputError, ParityError
from cris_deploy.text import Tokenizer
from cris_export import samples, trace, verify
from cris_export.precision import TypeShare, to_float16, type_share
from cris_export.samples import Answer
from cris_export.stages import build_stages
from cris_export.tokenizer import write_tokenizer
from cris_export.weights import WeightFile, compose_full
from cris_train import checkpoint as checkpoints
from cris_train.checkpoint import Checkpoint
from cris_train.model import Cris

# The paper and the reference cut probabilities here.
THRESHOLD = 0.35
VERSIONS_OF = ("cris-deploy", "torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportOptions:
    """What to export and how.

    Attributes:
        checkpoint: The `.pth` file.
        output: The bundle's directory; None for `x.bundle` beside `x.pth`.
        word_len: Tokens per expression; None to take the checkpoint's, or 17.
        precision: Type of weights and arithmetic.
        samples: JSONL of pairs to prove the export on; None for the packaged ones.
        min_iou: Least mean mask IoU against FP32 PyTorch, 0 to 1.
        opset: ONNX operator set.
    """

    checkpoint: Path
    output: Path | None = None
    word_len: int | None = None
    precision: Precision = Precision.FP32
    samples: Path | None = None
    min_iou: float = 0.99
    opset: int = trace.DEFAULT_OPSET

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_iou <= 1.0:
            raise InputError(f"--min-iou must be 0 to 1, not {self.min_iou}")

    @property
    def bundle(self) -> Path:
        """Where the bundle goes."""
        return self.output or self.checkpoint.with_suffix(".bundle")


@dataclass(frozen=True)
class ExportReport:
    """What came out.

    Attributes:
        bundle: The directory.
        checkpoint: What was read.
        parity: The gate's figures.
        types: Graph name -> its nodes and bytes per type.
        sizes: File name -> bytes, of all files in the bundle.
    """

    bundle: Path
    checkpoint: Checkpoint
    parity: verify.ParityReport
    types: dict[str, TypeShare]
    sizes: dict[str, int]


def export(options: ExportOptions, step: Callable[[str], None] = lambda _: None) -> ExportReport:
    """Export a checkpoint.

    Args:
        options: What and how.
        step: Called with a short line before each step, for progress.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        InputError: an option cannot be used.
        ParityError: the exported graphs missed `min_iou`; no bundle was left behind.
    """
    sources = samples.read_samples(options.samples)
    step(f"reading {options.checkpoint}")
    checkpoint = checkpoints.load(options.checkpoint, word_len=options.word_len)
    model = checkpoints.build(checkpoint)
    with BundleWriter(options.bundle) as writer:
        folder = writer.directory
        write_tokenizer(folder / bundles.TOKENIZER)
        step(f"tracing {checkpoint.config.architecture} to ONNX, opset {options.opset}")
        protos, types = _trace(model, options, folder)
        step(f"asking FP32 PyTorch about {len(sources)} samples")
        tokenizer = Tokenizer.from_file(folder / bundles.TOKENIZER, model.config.word_len)
        answers = samples.answer_samples(model, sources, tokenizer, THRESHOLD)
        manifest = bundles.Manifest(
            model=_facts(checkpoint, model),
            precision=options.precision,
            opset=options.opset,
            graphs={GraphName(name): _graph_spec(name, proto) for name, proto in protos.items()},
            versions=_versions(),
            samples=_write_samples(folder, answers),
            parity=None,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            files={},
        )
        manifest = writer.write_manifest(manifest)
        del model, protos
        gc.collect()
        step("comparing the exported graphs with PyTorch")
        parity = verify.verify(folder, answers, options.min_iou)
        if not parity.passed:
            raise ParityError(_failure(parity, options))
        manifest = writer.write_manifest(_with_parity(manifest, parity))
        writer.commit()
    sizes = {name: record.bytes for name, record in manifest.files.items()}
    return ExportReport(options.bundle, checkpoint, parity, types, sizes)


def _trace(
    model: Cris, options: ExportOptions, folder: Path
) -> tuple[dict[str, onnx.ModelProto], dict[str, TypeShare]]:
    """Trace, type and write the four graphs; their weights go to one file."""
    traced = trace.trace_stages(build_stages(model), model.config, options.opset)
    protos: dict[str, onnx.ModelProto] = {}
    types: dict[str, TypeShare] = {}
    with WeightFile(folder) as weights:
        for name in list(traced):
            graph = traced.pop(name)
            if options.precision is Precision.FP16:
                to_float16(graph, keep_outputs=frozenset({"logits"}))
            types[name] = type_share(graph)
            weights.externalise(graph)
            protos[name] = ir.to_proto(graph)
    protos["full"] = compose_full(list(protos.values()))
    for name, proto in protos.items():
        path = folder / f"{name}.onnx"
        onnx.save(proto, path)
        onnx.checker.check_model(str(path), full_check=True)
    return protos, types


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


def _write_samples(folder: Path, answers: Sequence[Answer]) -> tuple[bundles.Sample, ...]:
    """Copy each image once, and the FP32 logits of each pair."""
    (folder / "samples").mkdir()
    copies: dict[Path, str] = {}
    written = []
    for index, answer in enumerate(answers):
        source = answer.source.image
        if source not in copies:
            copies[source] = f"samples/image{len(copies)}{source.suffix.lower()}"
            shutil.copyfile(source, folder / copies[source])
        logits = f"samples/logits{index}.npy"
        np.save(folder / logits, answer.logits)
        written.append(
            bundles.Sample(
                copies[source], answer.source.expression, logits, answer.height, answer.width
            )
        )
    return tuple(written)


def _with_parity(manifest: bundles.Manifest, parity: verify.ParityReport) -> bundles.Manifest:
    return dataclasses.replace(
        manifest,
        parity=bundles.Parity(
            min_iou=parity.min_iou,
            mean_iou=parity.mean_iou,
            worst_iou=parity.worst.iou,
            max_logit_error=parity.max_logit_error,
            passed=parity.passed,
        ),
    )


def _failure(parity: verify.ParityReport, options: ExportOptions) -> str:
    worst = parity.worst
    remedy = (
        "export without --fp16, or lower --min-iou"
        if options.precision is Precision.FP16
        else "report it with the checkpoint's architecture, or lower --min-iou"
    )
    return (
        f"parity gate: mean mask IoU {parity.mean_iou:.4f} is below --min-iou {parity.min_iou}; "
        f"worst {worst.iou:.4f} on {worst.image}, {worst.expression!r}; largest logit error "
        f"{parity.max_logit_error:.3g}; no bundle was written: {remedy}"
    )


def _versions() -> dict[str, str]:
    versions = {}
    for name in VERSIONS_OF:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
