"""cris-bench ray: what its record says was lost. It kills for minutes; its parts are run here."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cris_bench.record.machine import describe
from cris_bench.scopes.processes import below
from cris_bench.scopes.ray_jobs import JobRun, picture
from cris_bench.scopes.ray_losses import RayRecord, Requests, describe_run, lost, main

REQUESTS = Requests(5, 100, 4, 1, 0, {"200": 100}, 2, 9.0, 50.0, 90.0, 300.0)
WHOLE = JobRun("nothing", 9.0, 5, 0, 5, 0, 1, 0)


def record(requests: Requests, *jobs: JobRun) -> RayRecord:
    return RayRecord(describe(), "x.bundle", 1.0, (requests,), 5, 2, jobs, ())


def test_what_counts_as_lost() -> None:
    cut_off = dataclasses.replace(WHOLE, killed="the job", images=2)
    assert not lost(record(REQUESTS, WHOLE, cut_off))
    assert not lost(record(dataclasses.replace(REQUESTS, retries=0, failed=1), WHOLE))
    assert lost(record(dataclasses.replace(REQUESTS, failed=1), WHOLE))
    assert lost(record(REQUESTS, dataclasses.replace(WHOLE, images=4)))
    assert lost(record(REQUESTS, dataclasses.replace(WHOLE, twice=1)))


def test_figures_as_text() -> None:
    text = describe_run(record(REQUESTS, WHOLE))
    assert "5 retries" in text
    assert "nothing" in text


def test_no_two_pictures_are_the_same() -> None:
    assert picture(1) == picture(1)
    assert len({picture(number) for number in range(5)}) == 5


def test_processes_below_another() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"up\n")
        process.stdin.flush()
        process.stdout.readline()  # a process that was only just made has no command yet
        assert process.pid in below(os.getpid(), "cat")
        assert process.pid not in below(os.getpid(), "ray::")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers", "1"), "--workers is 1"),
        (("--requests", "-1"), "--requests is -1"),
        ((), "cris-deploy[ray]"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    if arguments:
        (tmp_path / "serve").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert main([str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
