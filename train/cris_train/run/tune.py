"""Fine-tuning: a checkpoint and a folder become a checkpoint that is measured and can be exported.

The end of a run is not what is deployed, but a mean of the weights before and after it: along the
straight line between the two a model gains most of the new data before it loses much of the old
(Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022).
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import torch

from cris_deploy.documents import convert, plain
from cris_deploy.errors import CrisError, InputError
from cris_deploy.files import write_whole
from cris_train import checkpoint
from cris_train.checkpoint import Checkpoint
from cris_train.data.refer import ReferImage
from cris_train.evaluation.evaluate import evaluate
from cris_train.evaluation.metrics import MaskMetrics
from cris_train.evaluation.segmenters import TorchSegmenter
from cris_train.run.course import chosen_pictures
from cris_train.run.loop import train
from cris_train.run.published import published
from cris_train.run.recipe import DeviceChoice, TrainConfig
from cris_train.settings import read_values

TUNED, PAIRS = "tuned.pth", "validation.jsonl"
# Shares of the way from the old weights to the new ones that are measured.
SHARES: Final = (0.5, 0.6, 0.7, 0.8, 1.0)
# The least of them is taken that has this much of what the best of them gains.
WORTH: Final = 0.8
MOST_PAIRS: Final = 100
# Of a model's shape, what is not in its weights.
_FREE: Final = ("input_size", "word_len", "dropout")


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning came to.

    Attributes:
        checkpoint: The weights to deploy.
        share: Of the way from the old weights to the new ones.
        before: mIoU of the old weights on the validation pictures, 0 to 1.
        after: mIoU of `checkpoint`.
        seconds: Wall time of the training.
        export: The command that exports it, as words.
    """

    checkpoint: Path
    share: float
    before: float
    after: float
    seconds: float
    export: tuple[str, ...]


def read_tuning(
    init: Path,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
    data: Path | None = None,
    output: Path | None = None,
) -> TrainConfig:
    """The recipe of a fine-tuning run.

    Args:
        init: The checkpoint. It gives the model its shape, word length and input size.
        recipe: A YAML file in place of the one that comes with the package.
        overrides: `key=value`; of the model only what is not in its weights: `model.input_size`,
            `model.word_len` (which checkpoints of the reference do not say), `model.dropout`.
        data: Folder of the data set, in place of the recipe's where it is given.
        output: Folder of the run, likewise.

    Raises:
        InputError: the recipe is unusable, or asks for another shape than the checkpoint's.
        CheckpointError: the checkpoint cannot be used.
    """
    if recipe is not None:
        values = read_values(recipe, overrides)
    else:
        with as_file(files("cris_train.run") / "tune.yaml") as packaged:
            values = read_values(packaged, overrides)
    for name, path in (("data", data), ("output", output)):
        if path is not None:
            values[name] = str(path)
    if "data" not in values:
        raise InputError("--init needs --data DIR: a folder of pictures, masks and expressions")
    if values.get("lessons") and "epochs" in values:
        raise InputError("epochs and lessons both say how long: with epochs=N set lessons=[], too")
    named = values.pop("recipe", None)
    if named is not None:
        values = {**published(named), **values}
    values["init"], values["clip"] = str(init), None
    values["model"] = _shape(checkpoint.load(init), values.get("model"))
    where = " ".join(("the recipe", "with", *overrides)) if overrides else "the recipe"
    return convert(TrainConfig, values, where)


def _shape(given: Checkpoint, asked: object) -> dict[str, Any]:
    shape: dict[str, Any] = plain(given.config)
    if not isinstance(asked, Mapping):
        return shape
    for name, value in asked.items():
        if name in shape and name not in _FREE and value != shape[name]:
            raise InputError(
                f"model.{name} is {value}, and {given.path} has {shape[name]}: its weights fit no "
                f"other shape; leave model.{name} out, or train that shape with --config and "
                f"without --init"
            )
    return {**shape, **asked}


def tune(
    config: TrainConfig, report: Callable[[str], None] = print, *, resume: bool = False
) -> Tuned | None:
    """Train by a recipe of `read_tuning`, then choose weights and say how to export them.

    Args:
        config: The recipe.
        report: Called with lines to show.
        resume: Go on with what is in `output`.

    Returns:
        None in the processes that do not write.

    Raises:
        CrisError: as `loop.train`.
    """
    assert config.init is not None
    result = train(config, report, resume=resume)
    if not result.writes:
        return None
    folder = Path(config.output)
    val, broken = list(chosen_pictures(config).val), set[Path]()
    old = replace(checkpoint.load(config.init), config=config.model)
    new = checkpoint.load(result.best)
    before = _measure(old, val, config, broken)
    val = [image for image in val if image.path not in broken]
    scores = {share: _measure(blend(old, new, share), val, config, broken) for share in SHARES}
    share = least_share(before.mean_iou, {at: score.mean_iou for at, score in scores.items()})
    chosen = scores[share]
    path = checkpoint.save(
        folder / TUNED,
        checkpoint.build(blend(old, new, share)),
        epoch=new.epoch,
        cur_iou=chosen.mean_iou,
        best_iou=chosen.mean_iou,
        precision=chosen.precision,
    )
    pairs = write_pairs(folder / PAIRS, val)
    listed = ", ".join(f"{at:g}: {score.mean_iou:.4f}" for at, score in scores.items())
    report(f"mIoU by the share of the way from the old weights to the new ones: {listed}")
    report(
        f"mIoU {before.mean_iou:.4f} before, {chosen.mean_iou:.4f} after (share {share:g}) on "
        f"{len(val):,} validation pictures"
    )
    if chosen.mean_iou <= before.mean_iou:
        report("nothing was gained: look at the data (cris-data check), or lower learning_rate")
    return Tuned(
        checkpoint=path,
        share=share,
        before=before.mean_iou,
        after=chosen.mean_iou,
        seconds=result.seconds,
        export=export_command(path, pairs),
    )


def blend(old: Checkpoint, new: Checkpoint, share: float) -> Checkpoint:
    """Weights a share of the way from the old to the new ones; counters are the new ones'."""
    state = {}
    for name, value in new.state_dict.items():
        if value.is_floating_point():
            value = torch.lerp(old.state_dict[name].float(), value.float(), share)
        state[name] = value
    return replace(new, state_dict=state)


def least_share(before: float, scores: Mapping[float, float]) -> float:
    """The least share whose mIoU has `WORTH` of the best gain: what is not needed is not moved.

    Where nothing is gained, the one that loses least.
    """
    best = max(scores.values())
    enough = best if best <= before else before + WORTH * (best - before)
    return min(share for share, score in scores.items() if score >= enough)


def write_pairs(path: Path, images: Sequence[ReferImage]) -> Path:
    """Write validation pairs for `cris-export`, at most a hundred, one of each picture in turn.

    Raises:
        InputError: it cannot be written.
    """
    said = [
        [(image.path, one) for item in image.objects for one in item.expressions]
        for image in images
    ]
    turns = max(map(len, said))
    pairs = [one[turn] for turn in range(turns) for one in said if turn < len(one)]
    folder = path.resolve().parent
    lines = [
        json.dumps(
            {"image": os.path.relpath(image.resolve(), folder), "expression": one},
            ensure_ascii=False,
        )
        for image, one in pairs[:MOST_PAIRS]
    ]
    return write_whole(path, ("\n".join(lines) + "\n").encode())


def export_command(weights: Path, pairs: Path) -> tuple[str, ...]:
    """Export to int8, calibrated and proved on the validation pairs."""
    return (
        *("cris-export", "--ckpt", str(weights), "--int8"),
        *("--calibration", str(pairs), "--samples", str(pairs)),
    )


def shown(command: Sequence[str]) -> str:
    """A command to paste into a shell."""
    return shlex.join(command)


def _measure(
    weights: Checkpoint, val: Sequence[ReferImage], config: TrainConfig, broken: set[Path]
) -> MaskMetrics:
    """Metrics; with `skip_broken` what cannot be used is left out and added to `broken`."""
    on_gpu = config.device is not DeviceChoice.CPU and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    segmenter = TorchSegmenter(
        checkpoint.build(weights).to(device), threshold=config.threshold, device=device
    )

    def skip(image: ReferImage, error: CrisError) -> None:
        broken.add(image.path)

    return evaluate(segmenter, val, skip=skip if config.skip_broken else None)
