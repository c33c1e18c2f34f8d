"""A real Triton on this machine, without containers: the server inside NVIDIA's pytriton wheel.

That wheel wants NumPy below 2, so it has a virtual environment of its own.
Its server runs models of the Python backend alone, here in this process's Python.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

from cris_bench.scopes.processes import below
from cris_deploy.errors import BackendError

VENV: Final = Path(".venv-triton")
"""Where `make` puts it."""
_READY_SECONDS: Final = 120.0
_INSTALL: Final = "run make .venv-triton/.installed (Linux on x86-64)"


@dataclass(frozen=True)
class TritonServer:
    """A server that answers: `http`, `grpc` and `metrics` are host:port."""

    http: str
    grpc: str
    metrics: str
    process: subprocess.Popen[bytes]
    log: Path

    def stubs(self) -> list[int]:
        """Give the process ids of the models' instances, in the order of their start."""
        return below(self.process.pid, "python_backend")


def why_not(venv: Path = VENV) -> str | None:
    """Say why there is no such server here; None if there is."""
    folder = _wheel(venv)
    if folder is None:
        return f"{venv} has no nvidia-pytriton: {_INSTALL}"
    if not _stub(folder).is_file():
        return f"nvidia-pytriton runs no models of Python {_version()}"
    return None


@contextmanager
def triton_server(
    repository: Path, *options: str, venv: Path = VENV, log: Path | None = None
) -> Iterator[TritonServer]:
    """Run a server over a model repository, until the block ends.

    Raises:
        BackendError: it is not installed, or ends before it is ready; with the end of its log.
    """
    reason = why_not(venv)
    wheel = _wheel(venv)
    if reason is not None or wheel is None:
        raise BackendError(f"there is no Triton: {reason}")
    with tempfile.TemporaryDirectory(prefix="cris-triton-") as folder:
        backends, log = Path(folder) / "backends", log or Path(folder) / "log"
        _lay_out_backend(wheel, backends / "python")
        http, grpc, metrics = _free_ports(3)
        command = [
            *(str(_home(wheel) / "bin/tritonserver"), f"--model-repository={repository}"),
            *(f"--backend-directory={backends}", "--exit-timeout-secs=3", *options),
        ]
        for name, port in (("http", http), ("grpc", grpc), ("metrics", metrics)):
            command += [f"--{name}-address=127.0.0.1", f"--{name}-port={port}"]
        libraries = [str(wheel / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
        environment = {
            **os.environ,
            # The first python3 there runs the models.
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        }
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        try:
            _wait(process, http, log)
            http_at, grpc_at, metrics_at = (f"127.0.0.1:{port}" for port in (http, grpc, metrics))
            yield TritonServer(http_at, grpc_at, metrics_at, process, log)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < end:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    said = log.read_text(errors="replace")[-2000:]
    raise BackendError(f"Triton does not become ready: {said}")


def _lay_out_backend(wheel: Path, folder: Path) -> None:
    """Copy the backend as the server wants it, with the stub of this Python."""
    shutil.copytree(_home(wheel) / "backends/python", folder)
    shutil.copy(_stub(wheel), folder)


def _wheel(venv: Path) -> Path | None:
    return next((p.parent for p in sorted(venv.glob("lib/python3*/site-packages/pytriton"))), None)


def _home(wheel: Path) -> Path:
    return wheel / "pytriton/tritonserver"


def _stub(wheel: Path) -> Path:
    return _home(wheel) / "python_backend_stubs" / _version() / "triton_python_backend_stub"


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
