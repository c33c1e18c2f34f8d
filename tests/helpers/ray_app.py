"""Ray in an environment of its own (`.venv-ray`, made by `make test`), always as a process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from cris_bench.scopes.processes import below
from tests.helpers.server import Server, free_port, wait_ready

ROOT = Path(__file__).parents[2]
READY_SECONDS = 300.0
"""Ray starts eight processes before ours, which takes 15 s on two idle cores."""
ENVIRONMENT = {
    "RAY_ADDRESS": "local",  # never a cluster that runs here already
    "RAY_AUTH_MODE": "disabled",  # else Ray leaves a token in the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
}


def ray_python() -> Path:
    """The Python that has Ray; skips if there is none."""
    for python in (ROOT / ".venv-ray/bin/python", Path(sys.executable)):
        if (python.parent / "serve").exists():
            return python
    pytest.skip("Ray is not installed: make .venv-ray/.installed, or pip install '.[ray]'")


def environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT}


@contextmanager
def ray_serving(folder: Path, args: Mapping[str, Any], log: Path) -> Iterator[Server]:
    """The app of containers/ray/serve.yaml on a free port, with other arguments."""
    serve = ray_python().with_name("serve")
    config = yaml.safe_load((ROOT / "containers/ray/serve.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    config["http_options"]["request_timeout_s"] = 5
    config["applications"][0]["args"] = {**args}
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{port}"
    process = _start(serve, path, log)
    try:
        try:
            wait_ready(url, process, READY_SECONDS)
        except AssertionError:  # on a busy machine Ray gives its own start up: once more
            _end(process)
            process = _start(serve, path, log)
            wait_ready(url, process, READY_SECONDS)
        yield Server(url, port, process, log)
    finally:
        _end(process)


def _start(serve: Path, config: Path, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen(
            [serve, "run", config], stdout=output, stderr=output, env=environment(), cwd=ROOT
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    started = below(process.pid)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:  # a replica that a test has stopped holds it up
        process.kill()
        process.wait()
    for pid in started:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
