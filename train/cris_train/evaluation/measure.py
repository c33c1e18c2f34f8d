"""An evaluation from files to a report: a checkpoint or a bundle, one numbers code for both."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import torch
from tqdm import tqdm

from cris_deploy.bundle.reading import MANIFEST, Bundle
from cris_deploy.engine import Engine
from cris_deploy.errors import BackendError, CrisError, DataError, InputError
from cris_deploy.execution.backends import AUTO, Compute, Device
from cris_deploy.machine.versions import versions_of
from cris_train import checkpoint as checkpoints
from cris_train.autocast import AUTOCAST
from cris_train.data.refer import ReferImage, pick
from cris_train.data.splits import is_refer, open_splits
from cris_train.data.target import THRESHOLD
from cris_train.evaluation.evaluate import Outcome, Segmenter, evaluate
from cris_train.evaluation.groups import Groups
from cris_train.evaluation.presence import Scorer, ask
from cris_train.evaluation.report import (
    EvalReport,
    LeftOut,
    Measured,
    MeasuredKind,
    SplitScore,
)
from cris_train.evaluation.segmenters import EngineSegmenter, TorchSegmenter
from cris_train.synthetic.named.absent import AbsentNames
from cris_train.synthetic.refer_files import KINDS_FILE

_PACKAGES: Final = (
    "cris-deploy",
    "torch",
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
)


@dataclass(frozen=True)
class EvalOptions:
    """What to measure on what.

    Attributes:
        checkpoint: The checkpoint; give this or `bundle`.
        bundle: The bundle; give this or `checkpoint`.
        data: Folder of the data set.
        images: Folder of its pictures; None for the data set's own.
        splits: Names of splits.
        split_by: Who split it: unc, umd or google.
        backend: Of a bundle, as `Engine` takes it.
        device: As `Engine` takes it.
        precision: Arithmetic, as `Engine` takes it; a checkpoint's "auto" is fp32.
        threshold: Probability above which a pixel belongs to the mask; None for the bundle's own,
            for a checkpoint 0.35.
        word_len: Of a checkpoint that does not say it; None for its own, or for 17 on RefCOCO and
            RefCOCO+.
        limit: Pictures of each split, from the first; 0 for all.
        manifest_sha256: Of a bundle, as `Engine` takes it.
        require_signature: Likewise.
        skip_broken: Leave out what cannot be used, and count and name it; else it is an error.
    """

    data: Path
    checkpoint: Path | None = None
    bundle: Path | None = None
    images: Path | None = None
    splits: tuple[str, ...] = ("val",)
    split_by: str = "unc"
    backend: str = AUTO
    device: str = AUTO
    precision: str = AUTO
    threshold: float | None = None
    word_len: int | None = None
    limit: int = 0
    manifest_sha256: str | None = None
    require_signature: str | None = None
    skip_broken: bool = False

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.bundle is None):
            raise InputError("give either --ckpt FILE or --bundle DIR")
        if self.checkpoint is not None and self.backend != AUTO:
            raise InputError(
                f"--backend {self.backend} goes with --bundle: a checkpoint runs in PyTorch"
            )
        for name in ("manifest_sha256", "require_signature"):
            if self.checkpoint is not None and getattr(self, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} goes with --bundle: a checkpoint has neither")
        if self.bundle is not None and self.word_len is not None:
            raise InputError("--word-len goes with --ckpt: a bundle knows its own")
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise InputError(f"--threshold is {self.threshold}: give a probability, 0 to 1")
        if self.limit < 0:
            raise InputError(f"--limit is {self.limit}: give a number of pictures, or 0 for all")
        if not self.splits or len(set(self.splits)) != len(self.splits) or "" in self.splits:
            raise InputError(f"--split is {','.join(self.splits)!r}: name each split once")


def measure(
    options: EvalOptions, observe: Callable[[Outcome], object] = lambda outcome: None
) -> EvalReport:
    """Measure a checkpoint or a bundle on all expressions of all objects of each split.

    A progress bar goes to stderr where that is a terminal.

    Args:
        options: What to measure.
        observe: Called with every expression's outcome, such as `Gallery.add`.

    Raises:
        InputError: an option is unusable.
        CheckpointError: the checkpoint cannot be used.
        BundleError: the bundle cannot be used.
        BackendError: the backend, device or precision cannot be had, or failed.
        DataError: the data set is missing or damaged, or has no such split.
        ImageError: a picture cannot be read, and `skip_broken` is off.
        ExpressionError: an expression has no words, and `skip_broken` is off.
    """
    # The data first: a mistyped split should not wait for a model.
    known = open_splits(options.data, split_by=options.split_by, images=options.images)
    splits = [pick(known, name, options.data) for name in options.splits]
    kinds, names = _kinds(options.data), AbsentNames(options.data)
    with _opened(options) as (segmenter, measured, threshold):
        skips = options.skip_broken
        started = time.perf_counter()
        scores = tuple(
            _score(name, segmenter, images[: options.limit or None], kinds, observe, skips)
            for name, images in zip(options.splits, splits, strict=True)
        )
        scores = _with_presence(
            scores, segmenter, [s[: options.limit or None] for s in splits], names
        )
        seconds = time.perf_counter() - started
    return EvalReport(
        measured=measured,
        data=options.data.resolve().name,
        split_by=options.split_by,
        threshold=threshold,
        limit=options.limit,
        splits=scores,
        seconds=round(seconds, 3),
        versions=versions_of(_PACKAGES),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _score(
    split: str,
    segmenter: Segmenter,
    images: Sequence[ReferImage],
    kinds: dict[int, str],
    observe: Callable[[Outcome], object],
    skip_broken: bool,
) -> SplitScore:
    groups = Groups(kinds)
    measured: set[tuple[Path, int]] = set()
    left_out: list[LeftOut] = []

    def note(outcome: Outcome) -> None:
        measured.add((outcome.image.path, outcome.item.ref_id))
        groups.add(outcome)
        observe(outcome)

    def skip(image: ReferImage, error: CrisError) -> None:
        left_out.append(LeftOut(image.path.name, str(error)))

    with tqdm(total=len(images), desc=split, unit="image", disable=None) as bar:
        metrics = evaluate(
            segmenter, images, tick=bar.update, observe=note, skip=skip if skip_broken else None
        )
    if not metrics.ious:
        raise DataError(
            f"split {split!r}: nothing could be measured, {len(left_out)} left out; the first: "
            f"{left_out[0].reason}"
        )
    return SplitScore(
        split=split,
        images=len({path for path, _ in measured}),
        objects=len(measured),
        expressions=len(metrics.ious),
        mean_iou=metrics.mean_iou,
        overall_iou=metrics.overall_iou,
        precision=metrics.precision,
        by_kind=groups.scores(groups.kinds),
        by_words=groups.scores(groups.words),
        by_size=groups.scores(groups.sizes),
        left_out=tuple(left_out),
    )


def _with_presence(
    scores: Sequence[SplitScore],
    scorer: Scorer,
    splits: Sequence[Sequence[ReferImage]],
    names: AbsentNames,
) -> tuple[SplitScore, ...]:
    """The same, and what a threshold of the score tells: one chosen on the first split."""
    chosen: tuple[float, str] | None = None
    judged = []
    for score, images in zip(scores, splits, strict=True):
        found = ask(scorer, images, names)
        if found is not None:
            chosen = chosen or (found.threshold(), score.split)
            score = replace(score, presence=found.judge(*chosen))
        judged.append(score)
    return tuple(judged)


@contextmanager
def _opened(
    options: EvalOptions,
) -> Iterator[tuple[TorchSegmenter | EngineSegmenter, Measured, float]]:
    """The segmenter, what it is, and its threshold."""
    if options.checkpoint is not None:
        # cuDNN computes float32 convolutions in TF32 unless it is told not to.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield _open_checkpoint(options, options.checkpoint)
        return
    assert options.bundle is not None  # the options have one of the two
    with Engine(
        options.bundle,
        backend=options.backend,
        device=options.device,
        precision=options.precision,
        manifest_sha256=options.manifest_sha256,
        require_signature=options.require_signature,
        image_cache=0,  # each picture is asked for once
    ) as engine:
        info, path = engine.info, options.bundle
        parity = Bundle.open(path, verify=False).manifest.parity
        measured = Measured(
            kind=MeasuredKind.BUNDLE,
            name=path.resolve().name,
            sha256=hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest(),
            checkpoint_sha256=info.model.checkpoint_sha256,
            architecture=info.model.architecture,
            decoder_layers=info.model.decoder_layers,
            contrastive=info.model.contrastive,
            input_size=info.model.input_size,
            word_len=info.model.word_len,
            backend=info.backend.value,
            backend_version=info.choice.version,
            device=info.device.value,
            precision=info.compute.value,
            stored=info.precision.value,
            parity=None if parity is None else parity.passed,
        )
        threshold = info.model.threshold if options.threshold is None else options.threshold
        yield EngineSegmenter(engine, threshold=threshold), measured, threshold


def _open_checkpoint(options: EvalOptions, path: Path) -> tuple[TorchSegmenter, Measured, float]:
    device, precision = _torch_device(options.device), _torch_precision(options.precision)
    loaded = checkpoints.load(path, word_len=options.word_len)
    if not loaded.has_config and options.word_len is None and not _of_17_tokens(options):
        raise InputError(
            f"--word-len: {path} does not say for how many tokens of an expression it was trained: "
            f"give 22 for one of G-Ref, 17 for one of RefCOCO or RefCOCO+"
        )
    # Channels last is faster on a CPU, too, and what tensor cores want.
    model = checkpoints.build(loaded).to(device.value).to(memory_format=torch.channels_last)
    config = loaded.config
    threshold = THRESHOLD if options.threshold is None else options.threshold
    segmenter = TorchSegmenter(
        model, threshold=threshold, device=device.value, autocast=AUTOCAST[precision]
    )
    measured = Measured(
        kind=MeasuredKind.CHECKPOINT,
        name=path.name,
        sha256=loaded.sha256,
        checkpoint_sha256=loaded.sha256,
        architecture=config.architecture,
        decoder_layers=config.decoder_layers,
        contrastive=config.contrastive,
        input_size=config.input_size,
        word_len=config.word_len,
        backend="pytorch",
        backend_version=str(torch.__version__),
        device=device.value,
        precision=precision.value,
    )
    return segmenter, measured, threshold


def _of_17_tokens(options: EvalOptions) -> bool:
    """Whether the data are RefCOCO's or RefCOCO+'s, on which the reference takes 17."""
    return options.split_by == "unc" and is_refer(options.data, options.split_by)


def _torch_device(name: str) -> Device:
    here = torch.cuda.is_available()
    if name == AUTO:
        return Device.CUDA if here else Device.CPU
    try:
        device = Device(name)
    except ValueError:
        raise InputError(f"--device {name!r}: give {', '.join([AUTO, *Device])}") from None
    if device is Device.CUDA and not here:
        raise BackendError(
            "--device cuda: this PyTorch sees no GPU; install its CUDA build and a driver, or drop "
            "the option"
        )
    return device


def _torch_precision(name: str) -> Compute:
    try:
        precision = Compute.FP32 if name == AUTO else Compute(name)
    except ValueError:
        raise InputError(f"--precision {name!r}: give {', '.join([AUTO, *Compute])}") from None
    if precision not in AUTOCAST:
        raise BackendError(
            f"--precision {name}: a checkpoint has no quantised form; export it with --int8 "
            f"--calibration FILE and give --bundle"
        )
    return precision


def _kinds(data: Path) -> dict[int, str]:
    """Sentence number -> kind of expression; generated scenes have the file, RefCOCO has not."""
    path = data / KINDS_FILE
    if not path.exists():
        return {}
    try:
        return {int(k): str(v) for k, v in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error}; generate the scenes again") from error
