"""`cris-bench ray`: what is lost of Ray's when a process of it is killed.

Requests to the Ray Serve app while its replicas are killed, without and with the retry of
`docs/ray.md`; and a job of `cris-segment --ray` one of whose workers is killed half-way, and one
that is killed as a whole and run again.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from cris_bench.record.machine import describe
from cris_bench.scopes.command import add_common, run_command
from cris_bench.scopes.processes import below
from cris_bench.scopes.ray_jobs import WORDS, JobRun, kill_jobs, own_ray, picture
from cris_deploy.cli import Parser, tables
from cris_deploy.errors import BackendError, InputError

_SECONDS: Final = 600.0
_REPLICA: Final = "ray::ServeReplica"
RETRIES: Final = 5
RETRIED: Final = frozenset({500, 502, 503})


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of clients without a pause, while replicas were killed; see `docs/ray.md`."""

    retries: int
    requests: int
    clients: int
    kills: int
    failed: int
    statuses: dict[str, int]
    retried: int
    seconds: float
    p50_ms: float
    p99_ms: float
    longest_ms: float


@dataclass(frozen=True, slots=True)
class RayRecord:
    """A run of `cris-bench ray`."""

    machine: Any
    bundle: str
    ready_seconds: float | None
    requests: tuple[Requests, ...]
    asked_images: int
    workers: int
    jobs: tuple[JobRun, ...]
    command: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure. Exit 0, 1 if something was lost in spite of retries, 2 for unusable input."""
    return run_command(_parser(), argv, measure, describe_run, lost)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-bench ray",
        description="Kill replicas under requests and workers under a job; what is lost?",
        examples=(
            "cris-bench ray demo/scenes.bundle --requests 1800 --images 5000 -o ray.json",
            "cris-bench ray demo/scenes.bundle --kills 6 --images 0",
        ),
    )
    add_common(parser)
    add = parser.add_argument
    add("--requests", type=int, default=1800, metavar="N", help="(1800; 0 for none)")
    add("--clients", type=int, default=4, metavar="N", help="(4)")
    add("--kills", type=int, default=1, metavar="N", help="replicas within the requests (1)")
    add("--images", type=int, default=5000, metavar="N", help="of the job (5000; 0 for none)")
    add("--workers", type=int, default=2, metavar="N", help="replicas, and workers of the job (2)")
    return parser


def measure(args: argparse.Namespace, command: tuple[str, ...]) -> RayRecord:
    """Run the app and the job, and kill."""
    serve = Path(sys.executable).with_name("serve")
    if not serve.exists():
        raise InputError("Ray is missing: pip install 'cris-deploy[ray]'")
    for name, least in (("requests", 0), ("images", 0), ("clients", 1), ("workers", 2)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} is {getattr(args, name)}: give {least} or more")
    ready: float | None = None
    requests: list[Requests] = []
    if args.requests:
        with _app(serve, args.bundle, args.workers) as (url, pid, ready):
            requests = [asyncio.run(_ask(url, pid, args, retries)) for retries in (0, RETRIES)]
    jobs = tuple(kill_jobs(args.bundle, args.images, args.workers)) if args.images else ()
    return RayRecord(
        describe(),
        args.bundle.name,
        ready,
        tuple(requests),
        args.images,
        args.workers,
        jobs,
        command,
    )


def lost(record: RayRecord) -> bool:
    """Whether a retried request failed, or the finished job is not whole."""
    whole = [job for job in record.jobs if job.killed != "the job"]
    return any(run.failed for run in record.requests if run.retries) or any(
        job.images != record.asked_images or job.twice for job in whole
    )


def describe_run(record: RayRecord) -> str:
    """Give the figures as text."""
    asked = [
        (
            f"{run.retries} retries",
            f"{run.requests:,}",
            str(run.kills),
            str(run.failed),
            str(run.retried),
            f"{run.p50_ms:.0f}",
            f"{run.p99_ms:.0f}",
            f"{run.longest_ms:,.0f}",
        )
        for run in record.requests
    ]
    done = [
        (
            job.killed,
            f"{job.seconds:.0f}",
            f"{job.images:,}",
            *map(str, (job.twice, job.files, job.kept)),
        )
        for job in record.jobs
    ]
    heads = ("client", "requests", "kills", "failed", "retried", "p50 ms", "p99 ms", "longest ms")
    of_jobs = ("killed", "seconds", "images", "twice", "files", "kept as they were")
    return "\n\n".join((tables.to_text(heads, asked), tables.to_text(of_jobs, done)))


@contextmanager
def _app(serve: Path, bundle: Path, replicas: int) -> Iterator[tuple[str, int, float]]:
    """The app on a port of its own; gives its URL, the process, and the seconds until ready."""
    import httpx

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    args = {"bundle": str(bundle), "replicas": replicas, "cpus": 1, "threads": 1}
    config = {
        "http_options": {"port": port, "request_timeout_s": 45},
        "applications": [
            {"name": "cris", "import_path": "cris_deploy.serving.ray:app", "args": args}
        ],
    }
    with tempfile.TemporaryDirectory(prefix="cris-bench-") as folder:
        path = Path(folder, "serve.yaml")
        path.write_text(json.dumps(config))  # JSON is YAML
        began, url = time.perf_counter(), f"http://127.0.0.1:{port}"
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen([serve, "run", path], stdout=log, stderr=log, env=own_ray())
        try:
            while True:
                if process.poll() is not None or time.perf_counter() - began > _SECONDS:
                    raise BackendError("the Ray Serve app does not become ready")
                try:
                    if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield url, process.pid, time.perf_counter() - began
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


async def _ask(url: str, pid: int, args: argparse.Namespace, retries: int) -> Requests:
    import httpx

    pictures = [picture(number) for number in range(32)]
    kill_at = {(k + 1) * args.requests // (args.kills + 1) for k in range(args.kills)}
    times: list[float] = []
    statuses: Counter[str] = Counter()
    begun = retried = 0

    async def client(connection: "httpx.AsyncClient") -> None:
        nonlocal begun, retried
        while begun < args.requests:
            number, begun = begun, begun + 1
            if number in kill_at:
                os.kill(below(pid, _REPLICA)[0], signal.SIGKILL)
            began = time.perf_counter()
            for attempt in range(retries + 1):
                try:
                    answer = await connection.post(
                        "/v1/segment",
                        content=pictures[number % len(pictures)],
                        params={"expression": f"{WORDS} {number % 97}"},
                        headers={"content-type": "image/jpeg"},
                    )
                    outcome, again = str(answer.status_code), answer.status_code in RETRIED
                except httpx.TransportError as error:
                    outcome, again = type(error).__name__, True
                if not again or attempt == retries:
                    break
                retried += 1
                await asyncio.sleep(0.1 * 2**attempt)
            statuses[outcome] += 1
            times.append(1e3 * (time.perf_counter() - began))

    async with httpx.AsyncClient(base_url=url, timeout=60) as connection:
        began = time.perf_counter()
        await asyncio.gather(*(client(connection) for _ in range(args.clients)))
        seconds = time.perf_counter() - began
        while len(below(pid, _REPLICA)) < args.workers:  # for the next run
            await asyncio.sleep(0.2)
    p50, p99 = np.percentile(times, [50, 99])
    return Requests(
        retries,
        args.requests,
        args.clients,
        args.kills,
        args.requests - statuses["200"],
        dict(statuses),
        retried,
        seconds,
        float(p50),
        float(p99),
        max(times),
    )


if __name__ == "__main__":
    sys.exit(main())
