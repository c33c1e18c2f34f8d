"""`cris-bench browser`: a page of `cris-export web` in Chromium, with threads and without."""

from __future__ import annotations

import argparse
import functools
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import numpy as np

from cris_bench.record.machine import Machine, describe
from cris_bench.scopes.command import add_output, run_command
from cris_deploy import documents
from cris_deploy.cli import Parser, tables
from cris_deploy.errors import BackendError, InputError

_CHROMIUM: Final = ("chromium", "google-chrome", "chromium-browser")


@dataclass(frozen=True, slots=True)
class Load:
    """One load of the page with an empty cache.

    Attributes:
        way: "threads" or "one thread".
        threads: That the network ran in.
        ready: Milliseconds from the address to where words can be typed.
        pictures: Milliseconds of each picture: letterbox and image encoder.
        masks: Milliseconds of each expression: tokenizer, text encoder, mask decoder, mask.
    """

    way: str
    ready: float
    threads: int
    pictures: tuple[float, ...]
    masks: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class BrowserRecord:
    """A run of `cris-bench browser`; `model_bytes` are the graphs and the tokenizer."""

    machine: Machine
    browser: str
    model_bytes: int
    loads: tuple[Load, ...]
    command: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure. Exit 0, or 2 for unusable input."""
    return run_command(_parser(), argv, measure, describe_run)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-bench browser",
        description="Load a page from this machine, with an empty cache, and ask it for masks of "
        "pictures of 640 x 480, with threads and without by turns. Needs node and Chromium.",
        examples=(
            "cris-bench browser demo/page --modules build/web/node_modules",
            "cris-bench browser demo/page --rounds 20 -o browser.json",
        ),
    )
    add = parser.add_argument
    add("page", type=Path, metavar="PAGE", help="what cris-export web wrote")
    add_output(parser)
    add(
        "--modules",
        type=Path,
        default=Path("node_modules"),
        metavar="DIR",
        help="node_modules with playwright-core (node_modules)",
    )
    add("--rounds", type=int, default=6, metavar="N", help="loads of each way (6)")
    add("--masks", type=int, default=60, metavar="N", help="of a load (60)")
    return parser


def measure(args: argparse.Namespace, command: tuple[str, ...]) -> BrowserRecord:
    """Load the page in turns."""
    for name in ("rounds", "masks"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}: give 1 or more")
    model = args.page / "model"
    if not (model / "model.json").is_file():
        raise InputError(f"page {args.page} is no page: write one with cris-export web")
    node = shutil.which("node")
    chromium = find_chromium()
    if node is None or chromium is None:
        raise BackendError("a page is timed by node in Chromium: install both")
    if not (args.modules / "playwright-core").is_dir():
        raise InputError(f"modules {args.modules} lacks playwright-core: npm install it")
    with (
        hosted(args.page) as url,
        as_file(files("cris_bench.scopes") / "browser.mjs") as driver,
    ):
        counts = (f"{args.rounds}", f"{args.masks}")
        done = subprocess.run(
            [node, driver, url, args.modules.resolve(), chromium, *counts],
            capture_output=True,
            check=False,
        )
    if done.returncode:
        raise BackendError(f"the page cannot be timed: {done.stderr.decode(errors='replace')}")
    loads = documents.read(tuple[Load, ...], done.stdout, "node's answer", error=BackendError)
    version = subprocess.run([chromium, "--version"], capture_output=True, text=True, check=False)
    size = sum(path.stat().st_size for path in model.iterdir())
    return BrowserRecord(describe(), version.stdout.strip(), size, loads, command)


def find_chromium() -> str | None:
    """The path of a Chromium that is installed."""
    return next(filter(None, map(shutil.which, _CHROMIUM)), None)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def handle(self) -> None:
        with suppress(ConnectionError):  # a page that is left stops reading
            super().handle()


@contextmanager
def hosted(folder: Path) -> Iterator[str]:
    """The URL of a host of static files, which sends no header of its own."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def describe_run(record: BrowserRecord) -> str:
    """Give the figures as text."""
    rows = []
    for way in dict.fromkeys(load.way for load in record.loads):
        loads = [load for load in record.loads if load.way == way]
        pictures, masks = (
            np.asarray([getattr(load, name) for load in loads]) for name in ("pictures", "masks")
        )
        both = pictures + masks
        # While its first masks are found a browser compiles the runtime again, to faster code.
        settled = [times[:, times.shape[1] // 2 :] for times in (pictures, masks, both)]
        ready = [load.ready for load in loads]
        rows.append((f"{way} ({loads[0].threads})", *map(_of, (ready, both[:, 0], *settled))))
    columns = ("ms", "ready", "first mask", "then: picture", "expression", "both")
    title = f"{record.browser}: model of {record.model_bytes / 1e6:.1f} MB; median (10% to 90%)"
    return f"{title}\n\n" + tables.to_text(columns, rows)


def _of(times: Any) -> str:
    low, middle, high = np.percentile(times, (10, 50, 90))
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    sys.exit(main())
