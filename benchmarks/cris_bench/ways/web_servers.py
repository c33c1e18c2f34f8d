"""cris-serve and Ray Serve as processes on a free port, until a block ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

from cris_deploy.errors import BackendError

RAY_VENV: Final = Path(".venv-ray")
"""Where `make` puts Ray."""
_READY_SECONDS: Final = 300.0
_RAY_ENVIRONMENT: Final = {
    "RAY_ADDRESS": "local",  # never a cluster that runs here already
    "RAY_AUTH_MODE": "disabled",  # else Ray leaves a token in the home folder
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class WebServer:
    """A server that answers `/ready`: its address host:port, process, and seconds to ready."""

    address: str
    pid: int
    ready_seconds: float


@contextmanager
def cris_serve(bundle: Path, options: Sequence[str] = ()) -> Iterator[WebServer]:
    """Run cris-serve; BackendError with the end of its log if it does not become ready."""
    port = _free_port()
    command = [sys.executable, "-m", "cris_deploy.cli.serve", str(bundle), "--port", str(port)]
    with _running("cris-serve", [*command, *options], port, signal.SIGTERM) as server:
        yield server


def why_no_ray(venv: Path = RAY_VENV) -> str | None:
    """Say why there is no Ray Serve here; None if there is."""
    if _serve(venv) is None:
        return f"{venv} has no Ray: run make {RAY_VENV}/.installed"
    return None


@contextmanager
def ray_serve(
    bundle: Path, arguments: Mapping[str, Any], venv: Path = RAY_VENV
) -> Iterator[WebServer]:
    """Run the app of cris-deploy in a Ray of its own; BackendError as for `cris_serve`.

    arguments: Of the app, such as its backend.
    """
    serve = _serve(venv)
    if serve is None:
        raise BackendError(f"there is no Ray: {why_no_ray(venv)}")
    port = _free_port()
    document = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "cris",
                "route_prefix": "/",
                "import_path": "cris_deploy.serving.ray:app",
                "args": {**arguments, "bundle": str(bundle.absolute())},
            }
        ],
    }
    with tempfile.TemporaryDirectory(prefix="cris-ray-") as folder:
        config = Path(folder) / "serve.yaml"
        config.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
        command = [str(serve), "run", str(config)]
        with _running("Ray Serve", command, port, signal.SIGINT, _RAY_ENVIRONMENT) as server:
            yield server


@contextmanager
def _running(
    name: str,
    command: Sequence[str],
    port: int,
    ends: signal.Signals,
    environment: Mapping[str, str] | None = None,
) -> Iterator[WebServer]:
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **(environment or {})}
        )
        try:
            while not _ready(port):
                if process.poll() is not None or time.perf_counter() - began > _READY_SECONDS:
                    log.seek(0)
                    end = log.read()[-1000:].decode(errors="replace")
                    raise BackendError(f"{name} does not become ready: {end}")
                time.sleep(0.02)
            yield WebServer(f"127.0.0.1:{port}", process.pid, time.perf_counter() - began)
        finally:
            process.send_signal(ends)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _serve(venv: Path) -> Path | None:
    for folder in (venv / "bin", Path(sys.executable).parent):
        if (folder / "serve").is_file():
            return folder / "serve"
    return None


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
