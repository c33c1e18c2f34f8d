"""What is measured: a model in PyTorch, and the bundles that were made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tokenizers
import torch

from cris_bench.budget import NO_TIME, Budget, OutOfTime
from cris_bench.exports import Exports
from cris_bench.options import BenchOptions
from cris_bench.place import Place
from cris_bench.record.schema import Absent, BundleFacts, ModelFacts, Parity
from cris_deploy.bundle.manifest import DEFAULT_MIN_IOU, GraphName, Manifest, Precision
from cris_deploy.bundle.reading import MANIFEST, Bundle
from cris_deploy.errors import BackendError, InputError
from cris_deploy.execution.backends import Compute
from cris_export.export import export
from cris_export.options import INT8_MIN_IOU, ExportOptions
from cris_export.plans.options import NO_PLANS, PlanKind, PlanOptions
from cris_export.proof.samples import PACKAGED
from cris_train import checkpoint as checkpoints
from cris_train.checkpoint import Checkpoint
from cris_train.evaluation.paper import fps_of
from cris_train.model import Cris, CrisConfig

RANDOM = "random"
_BUNDLE: Final = "model.bundle"
_STORED: Final = {
    Compute.FP32: Precision.FP32,
    Compute.BF16: Precision.FP32,
    Compute.FP16: Precision.FP16,
    Compute.INT8: Precision.INT8,
    Compute.INT8_BF16: Precision.INT8,
}

Step = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """The model that all contestants run.

    Attributes:
        model: In PyTorch, on the CPU; None where only a bundle was given.
        checkpoint: Its file; None likewise.
        sha256: Of the checkpoint.
        bundles: Name in the record -> folder.
        computes: Name in the record -> arithmetic that the bundle is to be run in.
        vocabulary: Token numbers there are.
        facts: For the record.
        bundle_facts: For the record.
        work: Name in the record -> stage -> (operations of a run, bytes of its weights).
        paper_fps: The paper's figure, if this is one of its models.
    """

    model: Cris | None
    checkpoint: Path | None
    sha256: str
    bundles: Mapping[str, Path]
    computes: Mapping[str, tuple[Compute, ...]]
    vocabulary: int
    facts: ModelFacts
    bundle_facts: Mapping[str, BundleFacts]
    work: Mapping[str, Mapping[GraphName, tuple[int, int]]]
    paper_fps: float | None


def prepare(
    options: BenchOptions,
    place: Place,
    exports: Exports,
    folder: Path,
    step: Step,
    budget: Budget,
) -> tuple[Subject, list[Absent]]:
    """Read or make the model, and export what was not given and is not kept.

    Args:
        options: What to measure.
        place: Where.
        exports: What is kept.
        folder: For files that live as long as the run.
        step: Called with a line before each step.
        budget: For the exports; those that it does not do for are absent.

    Raises:
        BackendError: there was no time for any export.
        CheckpointError: the checkpoint cannot be used.
        BundleError: the bundle cannot be used.
        InputError: bundle and checkpoint are of different models.
    """
    path = options.checkpoint
    if path is None and options.bundle is None:
        step("making the full-size RN50 with random weights")
        path = checkpoints.save(folder / "random.pth", random_model())
    loaded = None if path is None else checkpoints.load(path)
    absent: list[Absent] = []
    if options.bundle is not None:
        bundles = {_precision(options.bundle).value: options.bundle}
        computes = {name: options.computes or tuple(Compute) for name in bundles}
    else:
        assert loaded is not None
        computes = _computes(options, place)
        bundles = {}
        for name in list(computes):
            try:
                with budget.cut():
                    bundles[name] = _export(options, loaded, Precision(name), place, exports, step)
            except OutOfTime:
                del computes[name]
                absent.append(Absent(f"the {name} bundle", NO_TIME))
        if not bundles:
            raise BackendError("no export was ready in time: give more --minutes")
    opened = {name: Bundle.open(place) for name, place in bundles.items()}
    manifest = next(iter(opened.values())).manifest
    if loaded is not None and manifest.model.checkpoint_sha256 != loaded.sha256:
        raise InputError(
            f"--bundle {options.bundle} was not exported from --ckpt {path}: export it again, or "
            f"leave one of them out"
        )
    ours = options.checkpoint is None and options.bundle is None
    subject = Subject(
        model=None if loaded is None else checkpoints.build(loaded),
        checkpoint=path,
        sha256=manifest.model.checkpoint_sha256,
        bundles=bundles,
        computes=computes,
        vocabulary=_vocabulary(opened) if loaded is None else loaded.config.vocab_size,
        facts=ModelFacts(
            architecture=manifest.model.architecture,
            input_size=manifest.model.input_size,
            word_len=manifest.model.word_len,
            parameters=manifest.model.parameters,
            weights=RANDOM if ours else manifest.model.checkpoint_sha256,
        ),
        bundle_facts={name: _facts(bundle, waived=ours) for name, bundle in opened.items()},
        work={name: _work(bundle.manifest) for name, bundle in opened.items()},
        paper_fps=_paper_fps(manifest) if loaded is None else paper_fps(loaded.config),
    )
    return subject, absent


def random_model() -> Cris:
    """The full-size model, as it would compute if it were trained.

    CLIP starts training with residual branches of zero scale, which a runtime may leave out:
    OpenVINO does so in int8, and would be timed on half an image encoder.
    """
    torch.manual_seed(0)
    model = Cris(CrisConfig.rn50()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.1)
    return model


def paper_fps(config: CrisConfig) -> float | None:
    """CRIS, Table 1, on a V100: the row of this model; None if it has none."""
    return fps_of(config)


def parity_of(manifest: Manifest, *, waived: bool = False) -> Parity:
    """What a bundle's gate says; a gate that asked for nothing is held to the default budget.

    Args:
        manifest: Of the bundle.
        waived: There is nothing to prove, as with random weights.
    """
    parity = manifest.parity
    if parity is None or waived:
        return Parity.NONE
    default = INT8_MIN_IOU if manifest.precision is Precision.INT8 else DEFAULT_MIN_IOU
    reached = parity.passed and parity.mean_iou >= (parity.min_iou or default)
    return Parity.PROVED if reached else Parity.FAILED


def _computes(options: BenchOptions, place: Place) -> dict[str, tuple[Compute, ...]]:
    """Stored precision -> arithmetic to run it in."""
    if options.computes:
        wanted = options.computes
    elif options.quick:
        wanted = (Compute.FP32, Compute.BF16)
    elif not place.on_gpu:  # float16 is for GPUs
        wanted = tuple(compute for compute in Compute if compute is not Compute.FP16)
    else:
        wanted = tuple(Compute)
    stored = {_STORED[compute]: None for compute in Compute if compute in wanted}
    return {
        precision.value: tuple(compute for compute in wanted if _STORED[compute] is precision)
        for precision in stored
    }


def _export(
    options: BenchOptions,
    checkpoint: Checkpoint,
    precision: Precision,
    place: Place,
    exports: Exports,
    step: Step,
) -> Path:
    """Export without a gate: what falls short is measured, and marked as such."""
    plans, gpu = NO_PLANS, ""
    if place.on_gpu:
        gpu = torch.cuda.get_device_name(place.index)
        plans = PlanOptions(
            PlanKind.AUTO,
            max_batch=max(options.batches),
            max_expressions=max(*options.expressions, 1),
        )

    def make(folder: Path) -> None:
        export(
            ExportOptions(
                checkpoint.path,
                output=folder / _BUNDLE,
                precision=precision,
                calibration=PACKAGED if precision is Precision.INT8 else None,
                gate=False,
                plans=plans,
            ),
            lambda line: step(f"{precision}: {line}"),
        )

    return exports.get(make, "bundle", checkpoint.sha256, precision.value, plans, gpu) / _BUNDLE


def _precision(bundle: Path) -> Precision:
    return Bundle.open(bundle, verify=False).manifest.precision


def _vocabulary(opened: Mapping[str, Bundle]) -> int:
    """Tokens of a bundle's tokenizer: larger numbers are outside of its embedding."""
    bundle = next(iter(opened.values()))
    return int(tokenizers.Tokenizer.from_file(str(bundle.tokenizer)).get_vocab_size())


def _facts(bundle: Bundle, *, waived: bool) -> BundleFacts:
    manifest = bundle.manifest
    return BundleFacts(
        precision=manifest.precision.value,
        sha256=hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest(),
        bytes=sum(record.bytes for record in manifest.files.values()),
        parity=parity_of(manifest, waived=waived),
        mean_iou=None if manifest.parity is None else manifest.parity.mean_iou,
    )


def _work(manifest: Manifest) -> dict[GraphName, tuple[int, int]]:
    return {
        name: (2 * sum(share.multiply_adds.values()), sum(share.weight_bytes.values()))
        for name, share in manifest.types.items()
    }


def _paper_fps(manifest: Manifest) -> float | None:
    """As `paper_fps`, of a bundle, which knows less of its configuration."""
    facts, paper = manifest.model, CrisConfig.rn50()
    if (facts.architecture, facts.input_size, facts.word_len) != (
        paper.architecture,
        paper.input_size,
        paper.word_len,
    ):
        return None
    return paper_fps(
        CrisConfig.rn50(contrastive=facts.contrastive, decoder_layers=facts.decoder_layers)
    )
