"""Jobs of `cris-segment --ray` that lose a worker, or are killed as a whole and run again."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2

from cris_bench.scopes.inputs import Fresh
from cris_bench.scopes.processes import below
from cris_deploy.errors import BackendError

WORDS: Final = "the red star"
_WORKER: Final = "ray::MapWorker"


@dataclass(frozen=True, slots=True)
class JobRun:
    """A run of a job: what was killed and when, and what is there after it.

    `images` are those in the output afterwards, `twice` those of them in two files; `kept` files
    were there before and are as they were.
    """

    killed: str
    seconds: float
    images: int
    twice: int
    rows: int
    errors: int
    files: int
    kept: int


def kill_jobs(bundle: Path, asked: int, workers: int) -> Iterator[JobRun]:
    """A job that loses a worker half-way; another that is killed half-way, and run again."""
    with tempfile.TemporaryDirectory(prefix="cris-bench-") as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        for number in range(asked):
            (images / f"{number:06}.jpg").write_bytes(picture(number))
        yield _job(bundle, asked, workers, images, folder / "first", "a worker")
        yield _job(bundle, asked, workers, images, folder / "second", "the job")
        yield _job(bundle, asked, workers, images, folder / "second", "nothing")


def _job(bundle: Path, asked: int, workers: int, images: Path, output: Path, killed: str) -> JobRun:
    before = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    command = [
        *(sys.executable, "-m", "cris_deploy.cli.segment", str(bundle), str(images), WORDS),
        *("--ray", "--workers", str(workers), "-o", str(output), "--json"),
    ]
    began = time.perf_counter()
    process = subprocess.Popen(command, env=own_ray(), stdout=subprocess.DEVNULL)
    half = asked // 2
    while killed != "nothing" and _images_in(output) < half:
        if process.poll() is not None:
            raise BackendError(f"the job has ended before it was killed ({process.returncode})")
        time.sleep(0.2)
    if killed == "a worker":
        os.kill(below(process.pid, _WORKER)[0], signal.SIGKILL)
    elif killed == "the job":
        # All of it at once, as a machine that is switched off.
        for pid in (*below(process.pid, ""), process.pid):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    seconds = time.perf_counter() - began
    after = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    rows = _read(output)
    sources = Counter(source for part in rows for source in {row["source"] for row in part})
    return JobRun(
        killed,
        seconds,
        len(sources),
        sum(count > 1 for count in sources.values()),
        sum(map(len, rows)),
        sum(row["error"] is not None for part in rows for row in part),
        len(after),
        sum(after.get(path) == when for path, when in before.items()),
    )


def _images_in(output: Path) -> int:
    from cris_deploy.batch.sources import PORTION

    return PORTION * len(list(output.glob("part-*")))


def _read(output: Path) -> list[list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    columns = ["source", "error"]
    return [pq.read_table(path, columns=columns).to_pylist() for path in output.glob("part-*")]


def picture(number: int) -> bytes:
    """A JPEG of 640 x 480 that no other number has."""
    done, data = cv2.imencode(".jpg", Fresh(480, 640, seed=number).picture())
    assert done  # OpenCV has JPEG built in
    return data.tobytes()


def own_ray() -> dict[str, str]:
    """The environment of a Ray that is nobody else's."""
    return {
        **os.environ,
        "RAY_ADDRESS": "local",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
