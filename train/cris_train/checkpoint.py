"""Checkpoints in the reference implementation's layout, read strictly and written atomically.

A file is `torch.save` of a dict: `epoch`, `cur_iou`, `best_iou`, `prec`, `state_dict` (names start
with `module.`), `optimizer`, `scheduler`. Files written here add `config`, a dict of plain values,
so that an export needs no flag, and where a run can go on `training`; the reference ignores both.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cris_deploy.documents import convert, plain
from cris_deploy.files import replacing
from cris_train.errors import CheckpointError
from cris_train.model import Cris, CrisConfig

PREFIX = "module."
PICKLE_START = b"\x80"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file says about a model.

    Attributes:
        path: The file.
        sha256: Hash of the file.
        config: The model's shape; read from the file, or from the parameter shapes.
        state_dict: Parameter name without prefix -> tensor.
        has_config: False for files of the reference, whose word length is an assumption.
        epoch: Epochs done when it was written.
        best_iou: Best validation mIoU so far, 0 to 1.
    """

    path: Path
    sha256: str
    config: CrisConfig
    state_dict: dict[str, Tensor]
    has_config: bool
    epoch: int
    best_iou: float


def load(path: str | Path, *, word_len: int | None = None) -> Checkpoint:
    """Read a checkpoint of the reference or of this project.

    Nothing in the file is executed: only tensors, plain values and a `Counter` are accepted.

    Args:
        path: The `.pth` file.
        word_len: Overrides the word length; for a file without configuration, 17 if None.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, contains code, or not a CRIS model.
        InputError: `word_len` is out of range.
    """
    path = Path(path)
    raw = read(path)
    state: dict[str, Tensor] = {}
    for name, value in raw["state_dict"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: state_dict holds {name!r}, which is not a tensor")
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(
                f"{path}: {name} is sparse, quantised or without values; save plain tensors"
            )
        state[name.removeprefix(PREFIX)] = value
    config = _config(path, raw.get("config"), state)
    if word_len is not None:
        config = replace(config, word_len=word_len)
    return Checkpoint(
        path=path,
        sha256=_sha256(path),
        config=config,
        state_dict=state,
        has_config=raw.get("config") is not None,
        epoch=_number(path, raw, "epoch", int),
        best_iou=_number(path, raw, "best_iou", float),
    )


def build(checkpoint: Checkpoint) -> Cris:
    """The model of a checkpoint in float32, in evaluation mode.

    Raises:
        CheckpointError: parameters are missing, unexpected, of another shape, or not finite; the
            message names them.
    """
    with torch.device("meta"):
        model = Cris(checkpoint.config)
    _match(checkpoint, {name: value.shape for name, value in model.state_dict().items()})
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in checkpoint.state_dict.items()
    }
    broken = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise CheckpointError(
            f"{checkpoint.path}: NaN or infinity in {_listing(broken)}; the training diverged, "
            f"use an earlier checkpoint"
        )
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def save(
    path: str | Path,
    model: Cris,
    *,
    epoch: int = 0,
    cur_iou: float = 0.0,
    best_iou: float = 0.0,
    precision: Mapping[str, float] | None = None,
    optimizer: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    half: bool = False,
) -> Path:
    """Write a checkpoint in the reference's layout, plus the model's configuration.

    The file appears whole or not at all: it is written beside the target and renamed.

    Args:
        path: Target; an existing file is replaced.
        model: The model.
        epoch: Epochs done.
        cur_iou: Validation mIoU of this epoch, 0 to 1.
        best_iou: Best validation mIoU, 0 to 1.
        precision: Precision at IoU thresholds, such as {"Pr@50": 0.9}.
        optimizer: Its state dict.
        scheduler: Its state dict.
        training: What else a run needs to go on (`state.py`): tensors and plain values.
        half: Store floating-point tensors as float16, for a file that is only deployed.
    """
    path = Path(path)
    state = {
        PREFIX + name: value.half() if half and value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    content = {
        "epoch": epoch,
        "cur_iou": cur_iou,
        "best_iou": best_iou,
        "prec": dict(precision or {}),
        "state_dict": state,
        "optimizer": dict(optimizer or {}),
        "scheduler": dict(scheduler or {}),
        "config": plain(model.config),
    }
    if training is not None:
        content["training"] = dict(training)
    with replacing(path) as file:
        torch.save(content, file)
    return path


def read(path: Path) -> Mapping[str, Any]:
    """All that a checkpoint file holds; nothing in it is executed.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or contains code.
    """
    raw = _unpickled(path)
    if not isinstance(raw, Mapping) or not isinstance(raw.get("state_dict"), Mapping):
        raise CheckpointError(
            f"{path}: not a training checkpoint; expected a dict with 'state_dict', as the "
            f"reference's and this project's training write it"
        )
    return raw


def _unpickled(path: Path) -> Any:
    try:
        zipped = _is_archive(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise _unreadable(path, error) from error
    except zipfile.BadZipFile as error:  # Python's question itself raises, of a damaged zip64 end
        raise _damaged(path, str(error)) from error
    try:
        # The scheduler of the reference keeps its milestones in a Counter.
        with torch.serialization.safe_globals([Counter]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol; the errors still raise
            # A zip archive can be mapped, which halves the memory of an export.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "Unsupported" in reason or "GLOBAL" in reason:
            raise CheckpointError(
                f"{path}: holds objects other than tensors and plain values, which loading would "
                f"have to execute; refused. Save its state_dict alone and use that"
            ) from error
        raise CheckpointError(f"{path}: truncated or not a PyTorch checkpoint") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # torch.load raises what its parts raise, per kind of damage
        raise _damaged(path, type(error).__name__) from error


def _is_archive(path: Path) -> bool:
    """Whether it is an archive, as torch writes it today, or a pickle, as it did once."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not path.is_file():
        raise CheckpointError(f"{path}: a checkpoint is a file, this is not")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty")
    with path.open("rb") as file:
        pickled = file.read(1) == PICKLE_START
    zipped = zipfile.is_zipfile(path)
    if not zipped and not pickled:
        raise CheckpointError(f"{path}: truncated or not a PyTorch checkpoint; copy the file again")
    return zipped


def _config(path: Path, given: object, state: Mapping[str, Tensor]) -> CrisConfig:
    if given is None:
        try:
            return CrisConfig.from_shapes({name: tuple(v.shape) for name, v in state.items()})
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return convert(CrisConfig, given, f"{path}: 'config'", error=CheckpointError)


def _match(checkpoint: Checkpoint, wanted: Mapping[str, torch.Size]) -> None:
    """Strict comparison of names and shapes, told in one message."""
    have = checkpoint.state_dict
    missing = [name for name in wanted if name not in have]
    unexpected = [name for name in have if name not in wanted]
    reshaped = [
        f"{name} {tuple(have[name].shape)} instead of {tuple(shape)}"
        for name, shape in wanted.items()
        if name in have and have[name].shape != shape
    ]
    found = [
        f"{label} {_listing(names)}"
        for label, names in (
            ("missing:", missing),
            ("unexpected:", unexpected),
            ("other shapes:", reshaped),
        )
        if names
    ]
    if found:
        raise CheckpointError(
            f"{checkpoint.path}: parameters do not match a CRIS model on "
            f"{checkpoint.config.architecture}; {'; '.join(found)}"
        )


def _listing(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _number(path: Path, raw: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    value = raw.get(name)
    try:
        return kind(value) if isinstance(value, (int, float)) else kind(0)
    except (ValueError, OverflowError) as error:  # NaN, infinity, or an integer beyond a float
        raise CheckpointError(f"{path}: {name} is {value!r:.40}: {error}") from None


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: truncated or not a PyTorch checkpoint ({why}); copy the file again"
    )


def _unreadable(path: Path, error: OSError | ValueError) -> CheckpointError:
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(f"{path}: cannot be read: {reason}; copy the file again")
