"""A training recipe: a file states what differs from the defaults, or from a published recipe.

A setting that is added later has a default that means "as before": that is what a run of an earlier
version goes on with (`state.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from cris_deploy.documents import Count, Positive, Share, convert
from cris_deploy.errors import InputError
from cris_deploy.execution.backends import Compute
from cris_train.autocast import AUTOCAST
from cris_train.data.augment import Augment
from cris_train.data.feed import Draw
from cris_train.data.target import THRESHOLD, TargetSampling
from cris_train.model import CrisConfig
from cris_train.run.published import published
from cris_train.settings import read_values

_COMPUTES: Final = " or ".join(AUTOCAST)


class Schedule(Enum):
    """What becomes of the learning rate after warm-up.

    STEP: times `decay_factor` after each of `decay_epochs`, as the paper does. COSINE: half a
    cosine down to `final_factor`.
    """

    STEP = "step"
    COSINE = "cosine"


class DeviceChoice(Enum):
    """Where to train. AUTO takes the GPU if there is one, and says what it took."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True)
class Lesson:
    """A stretch of training on part of the expressions.

    Attributes:
        samples: Expressions to see.
        max_words: Leave longer expressions out; None for all.
        input_size: Smaller images than the model's own, to learn faster at first; None for its own.
        crops: Teach the two encoders alone, on objects cut out of the pictures, this many pixels
            wide (`towers.py`); None for the whole model and whole pictures.
    """

    samples: Positive
    max_words: Positive | None = None
    input_size: Annotated[int, Meta(ge=32, multiple_of=32)] | None = None
    crops: Annotated[int, Meta(ge=32, multiple_of=32)] | None = None


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on.

    Attributes:
        model: The model's shape, with the ablations `contrastive: false` and `decoder_layers: 0`.
        clip: CLIP's weights to start from: a file of OpenAI's, or name:tag of open_clip; None to
            start from nothing.
        init: A CRIS checkpoint whose weights to start from, such as for fine-tuning; None for none.
        data: Folder of the data set.
        images: Folder of its pictures; None for the usual places (`data/pictures.py`).
        split_by: Who split it: unc, umd or google.
        train_split: Name of the split to learn from.
        val_split: Name of the split to measure on.
        hold_out: Share of the training pictures to measure on where there is no `val_split`; 0: an
            error (`data/choose.py`).
        augment: How much training pictures change (`data/augment.py`); None for not at all.
        strange_words: Share of training expressions with a random word more (`data/strange.py`).
        skip_broken: Leave out, and count, unusable pictures of either split; else an error.
        output: Folder for checkpoints and logs.
        seed: Of initialisation, order, draws and dropout.
        draw: What an epoch is: every object once (object) or every picture once (image).
        target: How a mask becomes a target of a quarter of the size.
        dice: Weight of the Dice loss beside the paper's (`run/losses.py`); 0 for none.
        images_per_batch: Images in an optimiser step, of all processes and parts together.
        expressions_per_image: Expressions of each of them; the image is encoded once for all.
        workers: Processes that read pictures, per training process; 0 reads in that one.
        cache: Keep read pictures in memory (small data sets).
        learning_rate: Of Adam, at its height. Weight decay is AdamW's; without it that is Adam.
        backbone_factor: CLIP's share of it, position embeddings excepted.
        full_rate_epochs: Epochs at the start in which CLIP has the whole of it, too.
        weight_decay: On matrices and convolutions only.
        schedule: What becomes of the learning rate.
        decay_epochs: For `step`: after how many epochs it drops.
        decay_factor: For `step`: by how much.
        final_factor: For `cosine`: the share of the learning rate at the end.
        warmup_steps: Steps of linear rise.
        clip_norm: Largest norm of the gradient; 0 for no limit.
        epochs: Passes over the data.
        lessons: What to train on, one after the other, in place of `epochs`.
        device: Where to train.
        precision: What forward and backward pass compute in; weights and optimiser are float32 in
            all. fp16 is done with loss scaling; bf16 needs none, but a device that has it.
        accumulate: Parts in which a process takes its share of a step, one after the other. Batch
            norm sees one part (of all processes) at a time.
        recompute: Activation checkpointing: less memory for a second forward pass; not with
            `compile`.
        sync_batch_norm: Batch statistics over all processes.
        compile: torch.compile.
        deterministic: On a GPU, only kernels that repeat exactly, or an error that names the
            operation; on a CPU they do anyway.
        ema: Decay of an average of the weights, such as 0.999, that is measured and kept as best
            instead of the weights; 0 for none.
        validate_every: Expressions between two validations; 0 for an epoch.
        patience: Validations without a better mIoU that end the run; 0 for none.
        val_images: Images to validate on; 0 for the whole split.
        threshold: Probability above which a pixel belongs to the mask.
        sheet_tiles: Validation pictures on the sheet of masks; 0 for no sheet.
        save_every: Steps between two saves of last.pth; validation saves, too.
        log_every: Steps between two lines of the log.
        tensorboard: Write event files, too.
    """

    model: CrisConfig = field(default_factory=CrisConfig)
    clip: str | None = None
    init: str | None = None
    data: str = "data/refcoco"
    images: str | None = None
    split_by: str = "unc"
    train_split: str = "train"
    val_split: str = "val"
    hold_out: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    augment: Augment | None = None
    strange_words: Share = 0.0
    skip_broken: bool = False
    output: str = "runs/cris"
    seed: Count = 0
    draw: Draw = Draw.OBJECT
    target: TargetSampling = TargetSampling.NEAREST
    dice: Annotated[float, Meta(ge=0)] = 0.0
    images_per_batch: Positive = 64
    expressions_per_image: Positive = 1
    workers: Count = 0
    cache: bool = False
    learning_rate: Annotated[float, Meta(gt=0, lt=1)] = 1e-4
    backbone_factor: Share = 0.1
    full_rate_epochs: Count = 0
    weight_decay: Share = 0.0
    schedule: Schedule = Schedule.STEP
    decay_epochs: tuple[int, ...] = (35,)
    decay_factor: Share = 0.1
    final_factor: Share = 0.01
    warmup_steps: Count = 0
    clip_norm: Annotated[float, Meta(ge=0)] = 0.0
    epochs: Positive = 50
    lessons: tuple[Lesson, ...] = ()
    device: DeviceChoice = DeviceChoice.AUTO
    precision: Annotated[Compute, Meta(description=_COMPUTES)] = Compute.FP32
    accumulate: Positive = 1
    recompute: bool = False
    sync_batch_norm: bool = True
    compile: bool = False
    deterministic: bool = False
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    validate_every: Count = 0
    patience: Count = 0
    val_images: Count = 0
    threshold: Share = THRESHOLD
    sheet_tiles: Count = 12
    save_every: Positive = 500
    log_every: Positive = 50
    tensorboard: bool = True

    def __post_init__(self) -> None:
        if self.precision not in AUTOCAST:
            raise InputError(f"precision is {self.precision}, expected {_COMPUTES}")
        if self.augment is not None and self.cache:
            raise InputError(
                "augment and cache exclude each other (a picture that changes is read each time): "
                "set cache=false, or augment=null"
            )
        if self.clip is not None and self.init is not None:
            raise InputError("clip and init both give the weights to start from: drop one")
        if self.compile and self.recompute:
            raise InputError(
                "compile and recompute exclude each other (torch.compile cannot keep batch norm's "
                "statistics from counting twice): drop one"
            )
        if self.images_per_batch % self.accumulate:
            raise InputError(
                f"images_per_batch is {self.images_per_batch} and must divide by accumulate, "
                f"{self.accumulate}"
            )
        if self.lessons and self.schedule is Schedule.STEP:
            raise InputError("schedule step counts epochs: with lessons use schedule: cosine")
        if self.full_rate_epochs and (self.lessons or not self.backbone_factor):
            raise InputError(
                "full_rate_epochs goes with epochs, not lessons, and with a backbone_factor above 0"
            )
        if (
            list(self.decay_epochs) != sorted({*self.decay_epochs})
            or min(self.decay_epochs, default=1) < 1
        ):
            raise InputError(f"decay_epochs must rise from 1 on, not {list(self.decay_epochs)}")

    @property
    def samples_per_step(self) -> int:
        """Expressions in an optimiser step."""
        return self.images_per_batch * self.expressions_per_image


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe.

    Args:
        path: The YAML file; its keys are the fields of `TrainConfig`, `model` those of
            `CrisConfig`, and `recipe` the name of a published recipe (`published.py`) whose
            settings go before the defaults.
        overrides: `key=value` with the value in YAML; `model.word_len=22` reaches inside. Of `clip`
            and `init` one that is given here replaces the other of the file.

    Raises:
        InputError: no such file, not YAML, a key that does not exist (with the nearest that does),
            or a value of another type or out of range.
    """
    values = read_values(path, overrides)
    if values.get("lessons") and "epochs" in values:
        raise InputError(
            f"{path}: epochs and lessons both say how long: drop epochs, or set lessons=[]"
        )
    named = values.pop("recipe", None)
    if named is not None:
        values = {**published(named), **values}
    given = {override.partition("=")[0] for override in overrides}
    for source, other in (("init", "clip"), ("clip", "init")):
        if source in given and other not in given and values[source] is not None:
            values[other] = None
    where = " ".join((str(path), "with", *overrides)) if overrides else str(path)
    return convert(TrainConfig, values, where)
