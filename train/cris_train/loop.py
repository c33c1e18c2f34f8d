"""The training loop: one process, one device, every step in sight."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import AdamW

from cris_deploy.errors import TrainingError
from cris_train import checkpoint
from cris_train.config import Lesson, TrainConfig
from cris_train.data.dataset import Batch, ReferData
from cris_train.data.refer import read_split
from cris_train.evaluate import evaluate
from cris_train.metrics import MaskMetrics
from cris_train.model import Cris
from cris_train.model.pretrained import load_clip

LOG_COLUMNS = ("step", "samples", "seconds", "loss", "learning_rate", "mean_iou", "Pr@50")
# Weight of the newest loss in the running mean that is logged.
LOSS_WEIGHT = 0.02


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        best: Checkpoint with the best validation mIoU.
        last: Checkpoint after the last step.
        mean_iou: Of the best, 0 to 1.
        final: Metrics after the last step.
        seconds: Wall time.
    """

    best: Path
    last: Path
    mean_iou: float
    final: MaskMetrics
    seconds: float


def train(config: TrainConfig, report: Callable[[str], None] = print) -> TrainResult:
    """Train a model by a recipe.

    Args:
        config: The recipe.
        report: Called with a line at every validation.

    Raises:
        DataError: the data set is missing or damaged.
        TrainingError: the loss is not finite; the last good checkpoint stays.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    split = read_split(config.data, config.train_split, split_by=config.split_by)
    val = ReferData(
        read_split(config.data, config.val_split, split_by=config.split_by), config.model
    )
    model = Cris(config.model).to(memory_format=torch.channels_last)
    if config.clip is not None:
        load_clip(model, config.clip)
    optimizer = AdamW(_groups(model, config), lr=config.learning_rate, fused=True)
    run = _Run(config, model, optimizer, val, report)
    for lesson in config.lessons:
        shape = replace(config.model, input_size=lesson.input_size or config.model.input_size)
        data = ReferData(split, shape, max_words=lesson.max_words)
        if len(data) < config.images_per_batch:
            raise TrainingError(
                f"images_per_batch is {config.images_per_batch}, and only {len(data)} images have "
                f"expressions of at most {lesson.max_words} words"
            )
        for batch in _repeat(data, config, lesson, rng):
            run.step(batch)
    return run.finish()


def _repeat(
    data: ReferData, config: TrainConfig, lesson: Lesson, rng: np.random.Generator
) -> Iterator[Batch]:
    """As many batches as the lesson has, pass after pass."""
    left = config.lesson_steps(lesson)
    while left:
        for batch in data.batches(config.images_per_batch, config.expressions_per_image, rng):
            yield batch
            left -= 1
            if not left:
                return


class _Run:
    """State of a run: where it is, what it logged, what was best."""

    def __init__(
        self,
        config: TrainConfig,
        model: Cris,
        optimizer: AdamW,
        val: ReferData,
        report: Callable[[str], None],
    ) -> None:
        self.config, self.model, self.optimizer, self.val = config, model, optimizer, val
        self.report = report
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        self.folder = Path(config.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done = 0
        self.samples = 0
        self.loss = math.nan
        self.best_iou = -1.0
        self.metrics = MaskMetrics()
        self.started = time.monotonic()
        self.next_validation = config.validate_every
        with (self.folder / "log.csv").open("w", newline="") as file:
            csv.writer(file).writerow(LOG_COLUMNS)

    def step(self, batch: Batch) -> None:
        """One optimiser step, and a validation when one is due."""
        config = self.config
        self.model.train()
        image = batch.image.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            logits = self.model(image, batch.tokens)
        # CRIS, eq. 9 and 10: text-to-pixel contrast, a sigmoid of the dot product per pixel.
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch.target)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.done + 1}: lower learning_rate (now "
                f"{config.learning_rate}); the last good checkpoint is in {self.folder}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.done += 1
        self.samples += len(batch.tokens)
        last = value if math.isnan(self.loss) else self.loss
        self.loss = last + LOSS_WEIGHT * (value - last)
        if self.samples >= self.next_validation:
            self.next_validation += config.validate_every
            self.validate()

    def validate(self) -> None:
        """Measure, log, save: `last.pth` always, `best.pth` if it is."""
        config = self.config
        self.model.eval()
        self.metrics = evaluate(
            self.model,
            self.val,
            threshold=config.threshold,
            count=config.val_images,
            bf16=config.bf16,
        )
        iou, precision = self.metrics.mean_iou, self.metrics.precision
        is_best = iou > self.best_iou
        self.best_iou = max(iou, self.best_iou)
        names = ("last.pth", "best.pth") if is_best else ("last.pth",)
        for name in names:
            checkpoint.save(
                self.folder / name,
                self.model,
                epoch=self.done,
                cur_iou=iou,
                best_iou=self.best_iou,
                precision=precision,
            )
        rate = self.optimizer.param_groups[-1]["lr"]
        seconds = time.monotonic() - self.started
        row = (self.done, self.samples, seconds, self.loss, rate, iou, precision["Pr@50"])
        with (self.folder / "log.csv").open("a", newline="") as file:
            csv.writer(file).writerow([f"{value:.6g}" for value in row])
        self.report(
            f"{self.samples:>9,} of {self._total_samples():,} expressions, {seconds / 60:6.1f} min"
            f" | loss {self.loss:.4f} | mIoU {iou:.4f} | oIoU {self.metrics.overall_iou:.4f} | "
            + " ".join(f"{name} {share:.3f}" for name, share in precision.items())
        )

    def finish(self) -> TrainResult:
        """The last validation, over the split as configured."""
        self.validate()
        return TrainResult(
            best=self.folder / "best.pth",
            last=self.folder / "last.pth",
            mean_iou=self.best_iou,
            final=self.metrics,
            seconds=time.monotonic() - self.started,
        )

    def _factor(self, step: int) -> float:
        """Linear rise, then half a cosine down to `final_factor`."""
        config = self.config
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        span = max(1, config.total_steps - config.warmup_steps)
        progress = min(1.0, (step - config.warmup_steps) / span)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return config.final_factor + (1.0 - config.final_factor) * cosine

    def _total_samples(self) -> int:
        config = self.config
        return config.total_steps * config.images_per_batch * config.expressions_per_image


def _groups(model: Cris, config: TrainConfig) -> list[dict[str, object]]:
    """CLIP's parameters at their share of the rate; no decay on norms, biases, embeddings."""
    groups = []
    for backbone in (True, False):
        for decayed in (True, False):
            chosen = [
                parameter
                for name, parameter in model.named_parameters()
                if name.startswith("backbone.") is backbone
                and (parameter.ndim > 1 and "embedding" not in name) is decayed
                and name != "backbone.logit_scale"  # CRIS does not use it
            ]
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "lr": config.learning_rate * (config.backbone_factor if backbone else 1.0),
                        "weight_decay": config.weight_decay if decayed else 0.0,
                    }
                )
    return groups
