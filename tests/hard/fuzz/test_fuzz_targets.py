"""Every reader meets its corpus and some cases by chance: an error of ours, or a result.

The cases are the same each time. `make fuzz` has more, guided by the branches that they reach.
"""

import threading
import time
from pathlib import Path

import pytest

from tests.hard.fuzz.run import Tally, chunks
from tests.hard.fuzz.target import CORPUS, NAMES, find

CASES = {"words": 600, "checkpoints": 500, "requests": 250, "inference": 400, "folders": 600}
OTHERS = 1500


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_our_errors(name: str, tmp_path: Path) -> None:
    cases = CASES.get(name, OTHERS)
    tally = Tally(name)
    for _ in chunks(tally, tmp_path, cases=cases, seed=0, engine="plain"):
        pass
    found = {path.name: path.read_text() for path in (tmp_path / "findings").glob("*.txt")}
    assert tally.clean, f"{tally}\n" + "\n".join(f"{name}\n{text}" for name, text in found.items())
    assert tally.cases == cases
    assert tally.refused  # the reader was reached,
    assert tally.returned  # and now and then satisfied


def test_a_finding_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no error of ours is counted and kept, with the case that showed it."""
    from tests.hard.fuzz import worker

    (tmp_path / "state").write_bytes(bytes(worker.ROOM))
    judge = worker.Judge(tmp_path, "manifests", tmp_path)

    def broken(data: bytes) -> None:
        raise OverflowError("as Python has it")

    monkeypatch.setattr(judge, "_run", broken)
    judge(b"the case")
    judge(b"another")
    (kept,) = (path for path in (tmp_path / "findings").iterdir() if path.suffix != ".txt")
    assert kept.name.startswith("foreign-")
    assert kept.read_bytes() == b"the case"


def test_a_process_that_dies_is_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRIS_FUZZ_DIES_AT", "7")
    tally = Tally("plans")
    run = chunks(tally, tmp_path, cases=9, seed=0, engine="plain")
    next(run)
    assert (tally.crashes, tally.cases) == (1, 7)
    monkeypatch.delenv("CRIS_FUZZ_DIES_AT")
    next(run)
    assert (tally.crashes, tally.cases) == (1, 9)
    assert sum(tally.sources.values()) == 9
    (crash,) = (path for path in (tmp_path / "findings").iterdir() if path.suffix != ".txt")
    assert crash.read_bytes() == find("plans").corpus[7]


def test_guided_cases_are_guided(tmp_path: Path) -> None:
    """What reaches a branch first is kept: there is more than the committed corpus had."""
    pytest.importorskip("atheris", reason="the extra hard is not installed")
    tally = Tally("manifests")
    for _ in chunks(tally, tmp_path, cases=1000, seed=0, engine="guided"):
        pass
    assert tally.cases == 1000
    assert list((tmp_path / "corpus").iterdir())


def test_a_file_stops_a_run(tmp_path: Path) -> None:
    pause = tmp_path / "pause"
    pause.touch()
    started, removed = time.monotonic(), threading.Timer(3, pause.unlink)
    removed.start()
    tally = Tally("manifests")
    for _ in chunks(tally, tmp_path, cases=9, seed=0, engine="plain", pause=pause):
        pass
    assert (tally.cases, tally.clean) == (9, True)
    assert time.monotonic() - started > 3
    assert tally.seconds < time.monotonic() - started - 2


def test_corpora_are_small() -> None:
    for name in NAMES:
        files = list((CORPUS / name).iterdir())
        assert 0 < len(files) <= 150, name
        assert sum(path.stat().st_size for path in files) < 200_000, name
