"""Checkpoints: archives and old pickles, damaged, hostile, or with other tensors than claimed."""

import io
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from cris_deploy.documents import plain
from cris_train import checkpoint
from cris_train.model import CrisConfig
from tests.hard.fuzz.draw import Draw, damaged, edited

READER: Final = ("cris_train.checkpoint",)
OTHERS: Final = {
    "cris_train.checkpoint:save": "it writes",
    "cris_train.checkpoint:build": "it makes a model of what was read: seconds, not readers' work",
    "cris_train.checkpoint:_match": "a part of build",
    "cris_train.checkpoint:_listing": "a part of build",
}
CODES: Final = (
    b"cos\nsystem\n(S'exit 1'\ntR.",
    b"\x80\x02cbuiltins\neval\n(X\x04\x00\x00\x00quittR.",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(tR.",
    b"\x80\x02ccollections\nOrderedDict\n)R}X\x03\x00\x00\x00abcK\x01sb.",
    b"\x80\x02(lp0\ng0\na.",
    b"\x80\x02]" + b"(l" * 3000 + b".",
    b"\x80\x02X\xff\xff\xff\x7f.",
    b"\x80\x02r\xff\xff\xff\x7f.",
    b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
    b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".",
    b"\x80\x02X\x01\x00\x00\x00aQ.",
    b"\x80\x02.",
    b"\x80\x02}(X\x0a\x00\x00\x00state_dict}u.",
)


def make(folder: Path) -> Callable[[bytes], None]:
    torch.set_num_threads(1)
    content = {
        "epoch": 3,
        "cur_iou": 0.5,
        "best_iou": 0.6,
        "prec": {"Pr@50": 0.8},
        "state_dict": {"module.a": torch.ones(2, 3), "module.b": torch.zeros(4).half()},
        "optimizer": {},
        "scheduler": {"milestones": Counter({35: 1})},
        "config": plain(CrisConfig.tiny()),
    }
    files = [_saved(content), _saved(content, _use_new_zipfile_serialization=False)]
    members = {}
    with zipfile.ZipFile(io.BytesIO(files[0])) as archive:
        for info in archive.infolist():
            members[info.filename] = archive.read(info)
    path = folder / "x.pth"

    def case(data: bytes) -> None:
        draw = Draw(data)
        kind = draw.whole(0, 9)
        word_len = draw.choose((None, None, None, 17, 2, 78))
        if kind == 0:
            path.write_bytes(draw.rest())
        elif kind in (1, 2):
            path.write_bytes(damaged(files[kind - 1], draw))
        elif kind == 3:
            path.write_bytes(draw.choose(CODES) + draw.rest())
        elif kind in (4, 5):
            path.write_bytes(_archive(members, draw))
        elif kind == 6:
            path.unlink(missing_ok=True)
            checkpoint.load(draw.choose((path, folder, folder / ("x" * 300), folder / "a\0b")))
        else:
            path.write_bytes(_saved(_changed(content, draw), pickle_protocol=2))
        read = checkpoint.load(path, word_len=word_len)
        assert isinstance(read.epoch, int)
        assert isinstance(read.best_iou, float)
        for value in read.state_dict.values():
            assert isinstance(value, torch.Tensor)
            value.sum()  # what is mapped is there

    return case


def _saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def _changed(content: dict[str, Any], draw: Draw) -> Any:
    """Other values in it, other tensors, a configuration that does not fit, or none."""
    changed = edited(content, draw)
    if isinstance(changed, dict) and draw.flag():
        tensor: Any = torch.ones(draw.choose(((1,), (0,), (2, 2), (1, 0, 3))))
        kind = draw.whole(0, 5)
        if kind == 0:
            tensor = tensor.to(torch.complex64)
        elif kind == 1:
            tensor = torch.ones(1).expand(1000)
        elif kind == 2:
            tensor = tensor.bool()
        elif kind == 3:
            tensor = torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
        elif kind == 4:
            tensor = tensor.to_sparse()
        changed["state_dict"] = {draw.text(): tensor, "module.x": torch.ones(1)}
        if draw.flag():
            changed.pop("config", None)
    return changed


def _archive(members: dict[str, bytes], draw: Draw) -> bytes:
    """The archive written anew: hostile pickles, members missing, twice, or that inflate."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            kind = draw.whole(0, 11)
            if name.endswith("data.pkl") and kind in (1, 2, 3):
                content = (
                    draw.choose(CODES) if kind == 1 else damaged(content, draw)
                )  # of which many are still pickles
            elif kind == 4:
                content = damaged(content, draw)
            elif kind == 5:
                continue
            elif kind == 6:
                name = draw.choose(("archive/../x", "/etc/x", "data.pkl", "archive/data/99"))
            info = zipfile.ZipInfo(name)
            if kind == 7:  # torch wants members as they are
                info.compress_type = zipfile.ZIP_DEFLATED
                content = bytes(2**16) if draw.flag() else content
            archive.writestr(info, content)
    return stream.getvalue()
