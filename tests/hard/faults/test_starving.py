"""Disks that are full or broken, a few calls of each; `make hard` does every call.

The calls fail in the C library, below Python's files, NumPy's, ONNX Runtime's and torch's.
"""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hard.faults import starving
from tests.hard.faults.injection import EVERY_CALL, FULL, Calls
from tests.hard.faults.starving import JOBS, REMEDY, failing_zygote, spread, starve, tree
from tests.hard.faults.zygote import Zygote

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None and shutil.which("gcc") is None,
    reason="calls that fail are compiled: no C compiler",
)
FEW = {"export": 3, "training": 3, "record": None}


@pytest.fixture(scope="module")
def children() -> Iterator[Zygote]:
    with failing_zygote() as started:
        yield started


@pytest.fixture(scope="module")
def bundle(children: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported bundle; not to be changed."""
    folder = tmp_path_factory.mktemp("exported")
    job = starving.export_job(children, folder / "x")
    return Path(job.arguments["output"])


@pytest.mark.parametrize("name", JOBS)
def test_a_disk_that_becomes_full(children: Zygote, tmp_path: Path, name: str) -> None:
    found = starve(
        children, JOBS[name](children, tmp_path / "x"), int(FULL), errno.ENOSPC, FEW[name]
    )

    assert found.pop("problems") == []
    assert found["calls"] > 2
    assert found.keys() > {"calls"}


def test_a_write_that_fails_once(children: Zygote, tmp_path: Path) -> None:
    once = int(Calls.WRITE | Calls.NAME)
    found = starve(children, JOBS["record"](children, tmp_path / "x"), once, errno.EIO)

    assert found["problems"] == []


def test_reads_that_fail(children: Zygote, bundle: Path) -> None:
    """Each read of a bundle: the golden masks, or an error of ours."""
    fault = {"folder": str(bundle), "calls": int(Calls.READ), "error": errno.EIO}
    whole = children.do("ask", {**fault, "moment": EVERY_CALL}, bundle=str(bundle))
    golden, calls = whole.told["masks"], whole.told["calls"]
    outcomes = set()
    for moment in spread(calls, 12):
        ended = children.do("ask", {**fault, "moment": moment}, bundle=str(bundle))
        told = ended.told.get("message", "")
        outcomes.add(ended.status)
        assert ended.status in (0, 2), f"read {moment} of {calls}: {told}"
        assert ended.status == 2 or ended.told["masks"] == golden
        assert ended.status == 0 or REMEDY.search(told), told
    assert 2 in outcomes


@pytest.mark.parametrize("what", ["checkpoint", "pictures", "last.pth"])
def test_sources_that_cannot_be_read(children: Zygote, tmp_path: Path, what: str) -> None:
    if what == "checkpoint":
        job = JOBS["export"](children, tmp_path / "x")
        folder = tmp_path / "x" / "tiny.pth"
    else:
        job = JOBS["training"](children, tmp_path / "x")
        folder = tmp_path / "x" / ("data" if what == "pictures" else "parts/last.pth")
    fault = {"folder": str(folder), "calls": int(Calls.READ), "error": errno.EIO}
    before = tree(job.folder)
    # Another run than the one that is counted: what is counted goes on to its end.
    apart = shutil.copytree(job.folder, tmp_path / "apart")
    calls = children.do(job.work, fault, **job.arguments).told["calls"]
    for moment in spread(calls, 3):
        shutil.rmtree(job.folder)
        shutil.copytree(apart, job.folder)
        ended = children.do(job.work, {**fault, "moment": moment}, **job.arguments)
        told = ended.told.get("message", "")
        assert ended.status in (0, 2), f"read {moment} of {calls}: {told}"
        if ended.status == 2 and what == "checkpoint":
            assert tree(job.folder) == before
    assert job.right()


def test_a_real_full_disk(children: Zygote, tmp_path: Path) -> None:
    """A file system in memory of three sizes below what an export takes."""
    small = tmp_path / "small"
    small.mkdir()
    ckpt = tmp_path / "tiny.pth"
    children.do("write_checkpoint", path=str(ckpt))
    for size in ("64k", "4m", "10m"):
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)],
            capture_output=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
        try:
            ended = children.do("export", ckpt=str(ckpt), output=str(small / "b"))
            assert ended.status == 2, ended.told
            assert "No space left on device" in ended.told["message"]
            assert REMEDY.search(ended.told["message"])
            assert os.listdir(small) == []  # noqa: PTH208
        finally:
            subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("seconds", [10 * 365 * 86400, -10 * 365 * 86400])
def test_a_clock_that_jumps(children: Zygote, bundle: Path, tmp_path: Path, seconds: int) -> None:
    golden = children.do("ask", bundle=str(bundle)).told["masks"]
    assert children.do("ask", {"clock": seconds}, bundle=str(bundle)).told["masks"] == golden
    job = JOBS["training"](children, tmp_path / "x")
    assert children.do("run", {"clock": seconds}, **job.arguments).status == 0
    assert job.right()
    waiting = children.do("jump_while_waiting", {"clock": 1}, bundle=str(bundle), seconds=seconds)
    assert waiting.told["masks"] == [golden] * 3, waiting.told
    assert waiting.told["kept"] is True
