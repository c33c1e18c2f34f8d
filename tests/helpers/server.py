"""`cris-serve` as a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

READY_SECONDS = 120.0


@dataclass(frozen=True)
class Server:
    url: str
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(READY_SECONDS)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def wait_ready(
    url: str, process: "subprocess.Popen[bytes] | None" = None, seconds: float = READY_SECONDS
) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process is None or process.poll() is None, "the server has ended"
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server does not become ready")


@contextmanager
def serving(
    bundle: Path, log: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server of ONNX Runtime on one thread, whose samples are not run unless asked for."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "cris_deploy.cli.serve", str(bundle), "--port", str(port)),
        *("--backend", "onnxruntime", "--threads", "1", *options),
    ]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, stdout=stderr, stderr=stderr, env={**os.environ, **(environment or {})}
        )
    try:
        wait_ready(f"http://127.0.0.1:{port}", process)
        yield Server(f"http://127.0.0.1:{port}", port, process, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
