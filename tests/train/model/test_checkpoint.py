"""Checkpoints: the reference's layout in and out, and everything that is refused."""

import collections
import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cris_deploy.documents import plain
from cris_deploy.errors import InputError
from cris_train import checkpoint
from cris_train.errors import CheckpointError
from cris_train.model import Cris, CrisConfig


@pytest.fixture
def model() -> Cris:
    torch.manual_seed(0)
    return Cris(CrisConfig.tiny()).eval()


def reference_file(path: Path, model: Cris, **changes: Any) -> Path:
    """What the reference's training loop writes: no configuration, a Counter in the scheduler."""
    state = {"module." + name: value for name, value in model.state_dict().items()}
    content = {
        "epoch": 50,
        "cur_iou": 0.69,
        "best_iou": 0.7,
        "prec": {"Pr@50": 0.8},
        "state_dict": state,
        "optimizer": {"state": {}, "param_groups": []},
        "scheduler": {"milestones": collections.Counter({35: 1}), "last_epoch": 50},
    }
    torch.save({**content, **changes}, path)
    return path


def test_own_checkpoint_carries_its_configuration(tmp_path: Path, model: Cris) -> None:
    path = checkpoint.save(tmp_path / "a" / "x.pth", model, epoch=3, best_iou=0.5)
    loaded = checkpoint.load(path)
    assert loaded.has_config
    assert loaded.config == model.config
    assert (loaded.epoch, loaded.best_iou) == (3, 0.5)
    rebuilt = checkpoint.build(loaded)
    for name, value in model.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], value), name
    assert [p.name for p in path.parent.iterdir()] == ["x.pth"]


def test_written_layout_is_the_references(tmp_path: Path, model: Cris) -> None:
    raw = torch.load(checkpoint.save(tmp_path / "x.pth", model), weights_only=True)
    assert {"epoch", "cur_iou", "best_iou", "prec", "state_dict", "optimizer", "scheduler"} <= set(
        raw
    )
    assert all(name.startswith("module.") for name in raw["state_dict"])


def test_half_precision_file_loads_as_float32(tmp_path: Path, model: Cris) -> None:
    path = checkpoint.save(tmp_path / "x.pth", model, half=True)
    rebuilt = checkpoint.build(checkpoint.load(path))
    assert {p.dtype for p in rebuilt.parameters()} == {torch.float32}
    weight = model.neck.aggr[0].weight
    assert torch.equal(rebuilt.neck.aggr[0].weight, weight.half().float())


def test_reference_checkpoint_needs_no_flag(tmp_path: Path, model: Cris) -> None:
    path = reference_file(tmp_path / "x.pth", model)
    # Head counts and input size follow the convention, which the tiny model does not.
    loaded = checkpoint.load(path)
    assert not loaded.has_config
    assert loaded.config.word_len == 17
    assert loaded.config.input_size == 416
    assert loaded.config.neck_width == model.config.neck_width
    assert checkpoint.load(path, word_len=22).config.word_len == 22


def test_word_len_out_of_range(tmp_path: Path, model: Cris) -> None:
    path = checkpoint.save(tmp_path / "x.pth", model)
    with pytest.raises(InputError, match="word_len"):
        checkpoint.load(path, word_len=99)


def test_differing_keys_are_named(tmp_path: Path, model: Cris) -> None:
    state = {"module." + name: value for name, value in model.state_dict().items()}
    del state["module.neck.aggr.0.weight"]
    state["module.extra.weight"] = torch.zeros(2)
    state["module.proj.txt.bias"] = torch.zeros(3)
    path = reference_file(tmp_path / "x.pth", model, state_dict=state, config=plain(model.config))
    with pytest.raises(CheckpointError) as error:
        checkpoint.build(checkpoint.load(path))
    message = str(error.value)
    assert "missing: neck.aggr.0.weight" in message
    assert "unexpected: extra.weight" in message
    assert "proj.txt.bias (3,) instead of (145,)" in message


def test_nan_in_weights_is_named(tmp_path: Path, model: Cris) -> None:
    model.neck.aggr[0].weight.data[0, 0] = float("nan")
    path = checkpoint.save(tmp_path / "x.pth", model)
    with pytest.raises(CheckpointError, match=r"neck\.aggr\.0\.weight"):
        checkpoint.build(checkpoint.load(path))


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_malicious_pickle_is_refused_and_not_run(tmp_path: Path, model: Cris) -> None:
    marker = tmp_path / "executed"
    path = reference_file(tmp_path / "x.pth", model, optimizer=Evil(marker))
    with pytest.raises(CheckpointError, match="refused"):
        checkpoint.load(path)
    bare = tmp_path / "bare.pth"
    bare.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(CheckpointError):
        checkpoint.load(bare)
    assert not marker.exists()


def write_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def zipped(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p, "no such checkpoint"),
        (lambda p: (p.mkdir(), p)[1], "is a file"),
        (lambda p: write_bytes(p, b""), "empty"),
        (lambda p: write_bytes(p, b"not a checkpoint at all\n" * 100), "not a PyTorch checkpoint"),
        (lambda p: write_bytes(p, bytes(range(256)) * 64), "not a PyTorch checkpoint"),
        (zipped, "not a PyTorch checkpoint"),
        (lambda p: (torch.save([1, 2], p), p)[1], "not a training checkpoint"),
        (lambda p: (torch.save({"state_dict": {"a": 1}}, p), p)[1], "not a tensor"),
        (
            lambda p: (torch.save({"state_dict": {"a": torch.zeros(1)}}, p), p)[1],
            "not a CRIS checkpoint",
        ),
    ],
    ids=["missing", "folder", "empty", "text", "binary", "zip", "list", "values", "other"],
)
def test_unusable_files(tmp_path: Path, make: Any, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        checkpoint.load(make(tmp_path / "x.pth"))


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated_file(tmp_path: Path, model: Cris, keep: float) -> None:
    path = checkpoint.save(tmp_path / "x.pth", model)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        checkpoint.load(path)


def test_failed_save_keeps_the_old_file(
    tmp_path: Path, model: Cris, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.save(tmp_path / "x.pth", model, epoch=1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, model, epoch=2)
    monkeypatch.undo()
    assert checkpoint.load(path).epoch == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2).to_sparse(),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.ones(2, device="meta"),
    ],
    ids=["sparse", "quantised", "meta"],
)
def test_tensors_that_are_not_plain(tmp_path: Path, model: Cris, tensor: torch.Tensor) -> None:
    path = reference_file(tmp_path / "x.pth", model, state_dict={"module.a": tensor})
    with pytest.raises(CheckpointError, match="a is sparse, quantised or without values"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        CheckpointError, match=r"File name too long|no such checkpoint|cannot be read"
    ):
        checkpoint.load(tmp_path / name)


def test_a_configuration_with_half_a_character(tmp_path: Path, model: Cris) -> None:
    changed = {**plain(model.config), "image_width": "\ud800"}
    path = reference_file(tmp_path / "x.pth", model, config=changed)
    with pytest.raises(CheckpointError, match=r"no Unicode|image_width"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "changes", [{"epoch": math.inf}, {"epoch": math.nan}, {"best_iou": 10**400}]
)
def test_numbers_that_are_none(tmp_path: Path, model: Cris, changes: dict[str, Any]) -> None:
    path = reference_file(tmp_path / "x.pth", model, **changes)
    with pytest.raises(CheckpointError, match=f"{next(iter(changes))} is"):
        checkpoint.load(path)


def test_an_archive_that_says_it_is_of_many_disks_is_refused(tmp_path: Path) -> None:
    """Found by fuzzing: `zipfile.is_zipfile` raises of such an end."""
    path = tmp_path / "x.pth"
    locator = b"PK\x06\x07" + (0).to_bytes(4, "little") + bytes(8) + (9).to_bytes(4, "little")
    path.write_bytes(locator + b"PK\x05\x06" + bytes(18))
    with pytest.raises(CheckpointError, match="multiple disks"):
        checkpoint.load(path)
