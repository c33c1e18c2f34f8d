"""A few kills of each kind; `python -m tests.hard.faults.kills` does a hundred."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hard.faults import kills
from tests.hard.faults.zygote import Zygote, zygote


@pytest.fixture(scope="module")
def children() -> Iterator[Zygote]:
    with zygote() as started:
        yield started


def test_killed_exports(children: Zygote, tmp_path: Path) -> None:
    counted = kills.kill_exports(children, tmp_path / "x", 2)

    assert counted["killed"] == 2
    assert not any(counted[bad] for bad in kills.BAD["export"]), counted


def test_killed_training(children: Zygote, tmp_path: Path) -> None:
    counted = kills.kill_training(children, tmp_path / "x", 2)

    assert counted["killed"] == 2
    assert counted["last.pth equal to the bit"] == counted["runs"] > 0
    assert not any(counted[bad] for bad in kills.BAD["training"]), counted


def test_a_bundle_that_is_not_whole_is_counted(children: Zygote, tmp_path: Path) -> None:
    ckpt, bundle = tmp_path / "tiny.pth", tmp_path / "b"
    children.do("write_checkpoint", path=str(ckpt))
    children.do("export", ckpt=str(ckpt), output=str(bundle))
    golden = children.do("ask", bundle=str(bundle)).told["masks"]
    assert kills._answers(children, bundle, golden)
    (bundle / "weights.bin").write_bytes((bundle / "weights.bin").read_bytes()[:-1])
    assert not kills._answers(children, bundle, golden)


def test_a_child_that_was_killed_says_so(children: Zygote, tmp_path: Path) -> None:
    children.do("write_checkpoint", path=str(tmp_path / "tiny.pth"))
    what = {"ckpt": str(tmp_path / "tiny.pth"), "output": str(tmp_path / "b")}
    ended = children.kill_after(0.0, "export", **what)  # which takes seconds

    assert ended.status == -signal.SIGKILL
    assert ended.killed
    assert not ended.told


def test_records_add_up(tmp_path: Path) -> None:
    run = {"export": {"killed": 2, "seconds": 1.0}, "training": {"killed": 3, "seconds": 1.0}}
    for _ in range(2):
        kills.add_to(tmp_path / "r.json", run)

    record = json.loads((tmp_path / "r.json").read_text())
    assert record["totals"] == {"export": {"killed": 4}, "training": {"killed": 6}}
    assert len(record["runs"]) == 2
