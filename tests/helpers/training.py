"""A tiny recipe on a few generated scenes, and what a run of it leaves."""

import csv
from pathlib import Path
from typing import Any

import torch
import yaml

from cris_deploy.documents import plain
from cris_train.data.feed import Draw
from cris_train.data.target import TargetSampling
from cris_train.model import CrisConfig
from cris_train.run.recipe import Schedule, TrainConfig

# Of log.csv: wall time is no part of a result.
TIMES = ("seconds", "samples_per_second")


def tiny_recipe(data: Path, output: Path, **changes: Any) -> TrainConfig:
    """Four images with four expressions each in a step, measured on the training pictures."""
    settings: dict[str, Any] = {
        "model": CrisConfig.tiny(dropout=0.0),
        "data": str(data),
        "val_split": "train",
        "output": str(output),
        "draw": Draw.IMAGE,
        "target": TargetSampling.COVERAGE,
        "cache": True,
        "images_per_batch": 4,
        "expressions_per_image": 4,
        "learning_rate": 3e-3,
        "backbone_factor": 1.0,
        "schedule": Schedule.COSINE,
        "clip_norm": 1.0,
        "validate_every": 10**9,
        "log_every": 1,
        "tensorboard": False,
        "sheet_tiles": 0,
    }
    return TrainConfig(**{**settings, **changes})


def write_recipe(config: TrainConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(plain(config)))
    return path


def rows(folder: Path) -> list[dict[str, str]]:
    """Lines of log.csv, without times."""
    with (folder / "log.csv").open() as file:
        return [
            {key: value for key, value in row.items() if key not in TIMES}
            for row in csv.DictReader(file)
        ]


def losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in rows(folder)]


def content(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds, without times and paths."""
    found = torch.load(path, weights_only=True)
    if "training" in found:
        found["training"]["progress"]["seconds"] = 0.0
        found["training"]["progress"]["log_bytes"] = 0
        found["training"]["recipe"]["output"] = ""
    return dict(found)


def same(left: Any, right: Any) -> bool:
    """Equal to the bit, whatever is nested in what."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right) or (left != left and right != right)
