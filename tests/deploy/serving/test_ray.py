"""The Ray Serve app: the engine's masks, cris-serve's refusals, and who is started again."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cris_bench.scopes.processes import below
from cris_deploy import Engine
from cris_deploy.errors import CrisError
from tests.helpers.ray_app import environment, ray_python, ray_serving
from tests.helpers.server import Server

WORDS = ["a b", "c", "a b"]


@pytest.fixture(scope="module")
def ray_server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("ray")
    args = {
        "bundle": str(tiny_bundle),
        "backend": "onnxruntime",
        "cpus": 0.5,
        "max_body": 200_000,
        "read_timeout": 1,
        "self_test": False,
    }
    with ray_serving(folder, args, folder / "log") as server:
        yield server


def ask(server: Server, image: bytes, words: list[str], **fields: Any) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/segment",
        files={"image": ("x.png", image)},
        data={"expression": words, **fields},
        timeout=60,
    )


def test_answers_are_the_engine_s_bit_for_bit(
    ray_server: Server, engine: Engine, picture: bytes
) -> None:
    answer = ask(ray_server, picture, WORDS).json()
    for found, right in zip(answer["results"], engine.segment(picture, WORDS), strict=True):
        assert found["rle"] == right.rle()
        assert found["box"] == (None if right.box is None else list(right.box))
        assert found["score"] == pytest.approx(right.score, abs=1e-6)
        assert found["truncated"] is right.truncated


def test_what_cannot_be_used_has_the_engine_s_sentence(
    ray_server: Server, engine: Engine, picture: bytes
) -> None:
    for image, words in ((b"some text", "a"), (picture[:60], "a"), (picture, " ")):
        with pytest.raises(CrisError) as error:
            engine.segment(image, words)
        answer = ask(ray_server, image, [words])
        assert answer.status_code == 422
        assert answer.json()["error"] == str(error.value)
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def test_other_refusals_are_cris_serve_s(ray_server: Server, picture: bytes) -> None:
    assert ask(ray_server, bytes(200_001), ["a"]).status_code == 413
    assert ask(ray_server, picture, ["a"], threshold="2").status_code == 422
    assert httpx.post(f"{ray_server.url}/v1/segment", content=b"x").status_code == 415
    assert httpx.get(f"{ray_server.url}/nowhere").status_code == 404
    assert httpx.get(f"{ray_server.url}/v2/models/cris").json()["platform"] == "cris_deploy"
    assert httpx.get(f"{ray_server.url}/live").status_code == 200


def replicas(server: Server) -> list[int]:
    return below(server.process.pid, "ray::ServeReplica")


def test_a_replica_that_hangs_does_not_hang_its_clients(ray_server: Server, picture: bytes) -> None:
    (one,) = replicas(ray_server)
    os.kill(one, signal.SIGSTOP)
    try:
        assert ask(ray_server, picture, ["a"]).status_code == 408
    finally:
        os.kill(one, signal.SIGCONT)
    assert ask(ray_server, picture, ["a"]).status_code == 200


def test_a_killed_replica_is_started_again(ray_server: Server, picture: bytes) -> None:
    (first,) = replicas(ray_server)
    os.kill(first, signal.SIGKILL)
    end = time.monotonic() + 60
    statuses = []
    while not statuses or statuses[-1] != 200 or first in replicas(ray_server):
        assert time.monotonic() < end, statuses
        statuses.append(ask(ray_server, picture, ["a"]).status_code)
    # Meanwhile requests wait, or are told that the server failed or is late.
    assert set(statuses) <= {200, 408, 500, 503}


def test_what_is_wrong_with_the_arguments_is_said_at_once(tmp_path: Path) -> None:
    done = subprocess.run(
        [ray_python(), "-c", BUILD, tmp_path / "none"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert "BundleError" in done.stderr
    assert "does not exist" in done.stderr


BUILD = "import sys; from cris_deploy.serving.ray import app; app({'bundle': sys.argv[1]})"
