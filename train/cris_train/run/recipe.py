"""A training recipe. The defaults are the paper's; a file states what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from cris_deploy.errors import InputError
from cris_train.data.feed import Draw
from cris_train.data.target import TargetSampling
from cris_train.model import CrisConfig
from cris_train.settings import build, read_values


class Schedule(Enum):
    """What becomes of the learning rate after warm-up.

    STEP: times `decay_factor` after each of `decay_epochs`, as the paper does. COSINE: half a
    cosine down to `final_factor`.
    """

    STEP = "step"
    COSINE = "cosine"


class Precision(Enum):
    """What forward and backward pass compute in; weights and optimiser are float32 in all.

    FP16 needs loss scaling, which is done; BF16 does not, and needs a device that has it.
    """

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


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
    """

    samples: int
    max_words: int | None = None
    input_size: int | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples must be at least 1, not {self.samples}")
        if self.max_words is not None and self.max_words < 1:
            raise InputError(f"max_words must be at least 1, not {self.max_words}")
        if self.input_size is not None and (self.input_size < 32 or self.input_size % 32):
            raise InputError(f"input_size must be a multiple of 32, not {self.input_size}")


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
        skip_broken: Leave out, and count, training pictures that cannot be used; else an error.
        output: Folder for checkpoints and logs.
        seed: Of initialisation, order, draws and dropout.
        draw: What an epoch is: every object once (object) or every picture once (image).
        target: How a mask becomes a target of a quarter of the size.
        images_per_batch: Images in an optimiser step, of all processes and parts together.
        expressions_per_image: Expressions of each of them; the image is encoded once for all.
        workers: Processes that read pictures, per training process; 0 reads in that one.
        cache: Keep read pictures in memory (small data sets).
        learning_rate: Of Adam, at its height. Weight decay is AdamW's; without it that is Adam.
        backbone_factor: CLIP's share of it, position embeddings excepted.
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
        precision: What to compute in.
        accumulate: Parts in which a process takes its share of a step, one after the other. Batch
            norm sees one part (of all processes) at a time.
        recompute: Activation checkpointing: less memory for a second forward pass; not with
            `compile`.
        sync_batch_norm: Batch statistics over all processes.
        compile: torch.compile.
        deterministic: On a GPU, only kernels that repeat exactly; on a CPU they do anyway.
        ema: Decay of an average of the weights, such as 0.999, that is measured and kept as best
            instead of the weights; 0 for none.
        validate_every: Expressions between two validations; 0 for an epoch.
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
    skip_broken: bool = False
    output: str = "runs/cris"
    seed: int = 0
    draw: Draw = Draw.OBJECT
    target: TargetSampling = TargetSampling.NEAREST
    images_per_batch: int = 64
    expressions_per_image: int = 1
    workers: int = 0
    cache: bool = False
    learning_rate: float = 1e-4
    backbone_factor: float = 0.1
    weight_decay: float = 0.0
    schedule: Schedule = Schedule.STEP
    decay_epochs: tuple[int, ...] = (35,)
    decay_factor: float = 0.1
    final_factor: float = 0.01
    warmup_steps: int = 0
    clip_norm: float = 0.0
    epochs: int = 50
    lessons: tuple[Lesson, ...] = ()
    device: DeviceChoice = DeviceChoice.AUTO
    precision: Precision = Precision.FP32
    accumulate: int = 1
    recompute: bool = False
    sync_batch_norm: bool = True
    compile: bool = False
    deterministic: bool = False
    ema: float = 0.0
    validate_every: int = 0
    val_images: int = 0
    threshold: float = 0.35
    sheet_tiles: int = 12
    save_every: int = 500
    log_every: int = 50
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name, least in (
            ("images_per_batch", 1),
            ("expressions_per_image", 1),
            ("accumulate", 1),
            ("epochs", 1),
            ("save_every", 1),
            ("log_every", 1),
            ("seed", 0),
            ("workers", 0),
            ("warmup_steps", 0),
            ("validate_every", 0),
            ("val_images", 0),
            ("sheet_tiles", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name, most in (("weight_decay", 1.0), ("clip_norm", float("inf"))):
            if not 0.0 <= getattr(self, name) <= most:
                raise InputError(f"{name} must be 0 to {most:g}, not {getattr(self, name)}")
        for name in ("threshold", "backbone_factor", "decay_factor", "final_factor"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"{name} must be 0 to 1, not {getattr(self, name)}")
        if not 0.0 < self.learning_rate < 1.0:
            raise InputError(f"learning_rate must be in (0, 1), not {self.learning_rate}")
        if not 0.0 <= self.ema < 1.0:
            raise InputError(f"ema must be 0 (none) or a decay below 1, not {self.ema}")
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
            `CrisConfig`.
        overrides: `key=value` with the value in YAML; `model.word_len=22` reaches inside.

    Raises:
        InputError: no such file, not YAML, a key that does not exist (with the nearest that does),
            or a value of another type or out of range.
    """
    values = read_values(path, overrides)
    if values.get("lessons") and "epochs" in values:
        raise InputError(
            f"{path}: epochs and lessons both say how long: drop epochs, or set lessons=[]"
        )
    return build(TrainConfig, values, str(path))
