"""`cris-bench serve`: what HTTP costs beside the engine, and what a server does under load."""

import argparse
import asyncio
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import numpy as np

from cris_bench.record.machine import describe
from cris_bench.scopes.command import add_common, run_command
from cris_bench.scopes.inputs import jpeg
from cris_bench.scopes.processes import memory
from cris_bench.ways.web_servers import WebServer, cris_serve
from cris_deploy.cli import Parser, tables
from cris_deploy.engine import Engine
from cris_deploy.errors import BackendError, InputError

_WORDS: Final = "the small red star left of the blue cross"
_SETTLED: Final = 0.1
"""Share of the requests after which memory is looked at first."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """The same picture by the engine and over HTTP, taking turns; milliseconds.

    `known` ones were asked before, so that their features are in the cache: what is left is the
    text, the mask decoder and the way.
    """

    engine_ms: tuple[float, ...]
    http_ms: tuple[float, ...]
    known: bool

    @property
    def added_ms(self) -> float:
        """Median of the differences, turn by turn."""
        return float(np.median(np.subtract(self.http_ms, self.engine_ms)))


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of many clients without a pause.

    `settled_bytes` is what the server's processes took (proportional set size) after a tenth of the
    requests, `final_bytes` at the end.
    """

    clients: int
    requests: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float
    settled_bytes: int
    final_bytes: int


@dataclass(frozen=True, slots=True)
class ServeRecord:
    """A run of `cris-bench serve`."""

    machine: Any
    bundle: str
    choice: str
    ready_seconds: float
    overheads: tuple[Overhead, ...]
    load: Load | None
    command: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure. Exit 0, 1 if a request failed, 2 for unusable input."""
    return run_command(
        _parser(),
        argv,
        measure,
        describe_run,
        lambda record: record.load is not None and record.load.failed > 0,
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-bench serve",
        description="Time cris-serve on this machine: beside the engine in one process, and under "
        "many clients.",
        examples=(
            "cris-bench serve demo/scenes.bundle --requests 10000 --clients 16",
            "cris-bench serve r50.bundle --image street.jpg --requests 0 -o serve.json",
        ),
    )
    add_common(parser)
    add = parser.add_argument
    add("--image", type=Path, metavar="FILE", help="a picture (a generated JPEG of 640 x 480)")
    add("--turns", type=int, default=100, metavar="N", help="of engine and HTTP (100)")
    add("--requests", type=int, default=1000, metavar="N", help="under load (1000; 0 for none)")
    add("--clients", type=int, default=16, metavar="N", help="under load (16)")
    add("--pictures", type=int, default=32, metavar="N", help="different ones under load (32)")
    add("--server-options", default="", metavar="TEXT", help="handed to cris-serve")
    return parser


def measure(args: argparse.Namespace, command: tuple[str, ...]) -> ServeRecord:
    """Run a server, and time it."""
    for package, extra in (("httpx", "bench"), ("uvicorn", "serve")):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"{package} is missing: pip install 'cris-deploy[{extra}]'")
    for name, least in (("turns", 1), ("requests", 0), ("clients", 1), ("pictures", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} is {getattr(args, name)}: give {least} or more")
    picture = jpeg(args.image, 0)
    options = args.server_options.split()
    with Engine(args.bundle) as engine, cris_serve(args.bundle, options) as server:
        overheads = tuple(
            _overhead(engine, server.address, picture, args.turns, known=known)
            for known in (False, True)
        )
        choice = f"{engine.info.backend} on {engine.info.device} in {engine.info.compute}"
        load = None
        if args.requests:
            pictures = [jpeg(args.image, number) for number in range(args.pictures)]
            load = asyncio.run(_load(server, pictures, args.requests, args.clients))
    return ServeRecord(
        describe(), args.bundle.name, choice, server.ready_seconds, overheads, load, command
    )


def describe_run(record: ServeRecord) -> str:
    """Give the figures as text."""
    rows = [
        (
            "known picture" if overhead.known else "new picture",
            f"{np.median(overhead.engine_ms):.2f}",
            f"{np.median(overhead.http_ms):.2f}",
            f"{overhead.added_ms:+.2f}",
        )
        for overhead in record.overheads
    ]
    lines = [
        f"{record.bundle}: {record.choice}; ready after {record.ready_seconds:.1f} s",
        "",
        tables.to_text(("one client, median ms", "engine", "HTTP", "added"), rows),
    ]
    if (load := record.load) is not None:
        grown = load.final_bytes / load.settled_bytes - 1
        lines += [
            "",
            f"{load.requests:,} requests of {load.clients} clients: {load.failed} failed, "
            f"{load.requests / load.seconds:.1f} a second, p50 {load.p50_ms:.1f} ms, "
            f"p99 {load.p99_ms:.1f} ms ({load.p99_ms / load.p50_ms:.1f} x)",
            f"memory {load.final_bytes / 2**20:.0f} MiB, {grown:+.1%} since the first tenth",
        ]
    return "\n".join(lines)


def _overhead(engine: Engine, address: str, picture: bytes, turns: int, *, known: bool) -> Overhead:
    by_engine, by_http = [], []
    # A plain client: what a comfortable one costs is not the server's.
    with closing(HTTPConnection(address)) as client:
        for turn in range(turns + 3):
            image = picture if known else jpeg(None, 10**6 + turn)
            words = f"{_WORDS} {turn}"
            path = f"/v1/segment?{urlencode({'expression': words})}"
            began = time.perf_counter()
            expected = engine.segment(image, words)
            middle = time.perf_counter()
            client.request("POST", path, image, {"Content-Type": "image/jpeg"})
            answer = client.getresponse().read()
            ended = time.perf_counter()
            if json.loads(answer)["results"][0]["rle"] != expected.rle():
                raise BackendError("cris-serve gave another mask than the engine")
            if turn >= 3:
                by_engine.append(1e3 * (middle - began))
                by_http.append(1e3 * (ended - middle))
    return Overhead(tuple(by_engine), tuple(by_http), known)


async def _load(server: WebServer, pictures: list[bytes], requests: int, clients: int) -> Load:
    import httpx

    times: list[float] = []
    failed = begun = settled = 0

    async def client(connection: "httpx.AsyncClient") -> None:
        nonlocal failed, begun, settled
        while begun < requests:
            number, begun = begun, begun + 1
            if number == int(_SETTLED * requests):
                settled = memory(server.pid)
            began = time.perf_counter()
            try:
                answer = await connection.post(
                    "/v1/segment",
                    content=pictures[number % len(pictures)],
                    params={"expression": f"{_WORDS} {number % 97}"},
                    headers={"content-type": "image/jpeg"},
                )
                failed += answer.status_code != 200
            except httpx.TransportError:
                failed += 1
            times.append(1e3 * (time.perf_counter() - began))

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(
        base_url=f"http://{server.address}", timeout=120, limits=limits
    ) as connection:
        began = time.perf_counter()
        await asyncio.gather(*(client(connection) for _ in range(clients)))
        seconds = time.perf_counter() - began
    p50, p99 = np.percentile(times, [50, 99])
    return Load(
        clients, requests, failed, seconds, float(p50), float(p99), settled, memory(server.pid)
    )


if __name__ == "__main__":
    sys.exit(main())
