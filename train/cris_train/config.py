"""A training recipe: a YAML file whose every value the command line can override."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cris_deploy.errors import InputError
from cris_train.model import CrisConfig


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


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on.

    Attributes:
        model: The model's shape.
        clip: CLIP's weights to start from: a file of OpenAI's, or name:tag of open_clip; None to
            start from nothing.
        data: Folder of the data set.
        split_by: Who split it: unc, umd or google.
        train_split: Name of the split to learn from.
        val_split: Name of the split to measure on.
        output: Folder for checkpoints and the log.
        seed: Of initialisation, order and draw.
        images_per_batch: Images in a step.
        expressions_per_image: Expressions of each of them; the image is encoded once for all.
        learning_rate: At its height, after warm-up.
        backbone_factor: CLIP's share of it (the paper's fine-tuning has 0.1).
        weight_decay: Of AdamW; on matrices and convolutions only.
        warmup_steps: Steps of linear rise.
        final_factor: Share of the learning rate that the cosine ends with.
        clip_norm: Longest gradient that is let through.
        bf16: Mixed precision in bfloat16.
        lessons: What to train on, one after the other.
        validate_every: Expressions between two validations.
        val_images: Images to validate on; 0 for the whole split.
        threshold: Probability above which a pixel belongs to the mask.
    """

    model: CrisConfig = field(default_factory=CrisConfig)
    clip: str | None = None
    data: str = "data/refcoco"
    split_by: str = "unc"
    train_split: str = "train"
    val_split: str = "val"
    output: str = "runs/cris"
    seed: int = 0
    images_per_batch: int = 16
    expressions_per_image: int = 1
    learning_rate: float = 1e-4
    backbone_factor: float = 0.1
    weight_decay: float = 0.0
    warmup_steps: int = 0
    final_factor: float = 0.01
    clip_norm: float = 1.0
    bf16: bool = False
    lessons: tuple[Lesson, ...] = (Lesson(samples=100_000),)
    validate_every: int = 20_000
    val_images: int = 0
    threshold: float = 0.35

    def __post_init__(self) -> None:
        for name in ("images_per_batch", "expressions_per_image", "validate_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0.0 < self.learning_rate < 1.0:
            raise InputError(f"learning_rate must be in (0, 1), not {self.learning_rate}")
        if not 0.0 <= self.threshold <= 1.0:
            raise InputError(f"threshold must be 0 to 1, not {self.threshold}")
        if not self.lessons:
            raise InputError("lessons must name at least one lesson")

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all lessons."""
        return sum(self.lesson_steps(lesson) for lesson in self.lessons)

    def lesson_steps(self, lesson: Lesson) -> int:
        """Optimiser steps of a lesson, at least one."""
        return max(1, lesson.samples // (self.images_per_batch * self.expressions_per_image))


def read_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe.

    Args:
        path: The YAML file; its keys are the fields of `TrainConfig`, `model` those of
            `CrisConfig`.
        overrides: `key=value` with the value in YAML; `model.word_len=22` reaches inside.

    Raises:
        InputError: no such file, not YAML, or a key that does not exist (named, with the known).
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: expected keys and values")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"{override!r}: overrides have the form key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{override!r}: the value is not YAML") from error
        _assign(values, key, value)
    return _build(values, path)


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    head, _, rest = key.partition(".")
    if not rest:
        values[head] = value
        return
    inner = values.setdefault(head, {})
    if not isinstance(inner, dict):
        raise InputError(f"{key}: {head} has no settings of its own")
    _assign(inner, rest, value)


def _build(values: Mapping[str, Any], path: Path) -> TrainConfig:
    given = dict(values)
    known = {f.name: f for f in dataclasses.fields(TrainConfig)}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(
            f"{path}: unknown setting {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    given["model"] = CrisConfig.from_dict(given.get("model") or {})
    if "lessons" in given:
        try:
            given["lessons"] = tuple(Lesson(**lesson) for lesson in given["lessons"])
        except TypeError as error:
            raise InputError(
                f"{path}: lessons is a list of {{samples, max_words, input_size}}: {error}"
            ) from error
    for name, value in given.items():
        default = known[name].default
        if isinstance(default, bool) != isinstance(value, bool) and name in known:
            raise InputError(f"{path}: {name} must be {type(default).__name__}, not {value!r}")
        if isinstance(default, float) and isinstance(value, (int, str)):
            given[name] = _number(path, name, value)
        elif type(default) in (int, str) and not isinstance(value, type(default)):
            raise InputError(f"{path}: {name} must be {type(default).__name__}, not {value!r}")
    return TrainConfig(**given)


def _number(path: Path, name: str, value: int | str) -> float:
    """YAML reads 1e-3 (no dot) as a string; people write it."""
    try:
        return float(value)
    except ValueError as error:
        raise InputError(f"{path}: {name} must be a number, not {value!r}") from error
