"""A server from start to end: who may ask, how it ends, how its bundle is replaced, who is lost."""

import asyncio
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cris_bench.scopes.processes import below
from cris_deploy.batcher import BatchLimits
from cris_deploy.errors import BundleError, InputError
from cris_deploy.execution.backends import Device
from cris_deploy.execution.steps import Picture
from cris_deploy.serving import app as apps
from cris_deploy.serving.answers import Refused
from cris_deploy.serving.haproxy import configuration
from cris_deploy.serving.images import ImageStore
from cris_deploy.serving.options import ServeOptions, from_environment, to_environment
from tests.helpers.server import free_port, serving, wait_ready

pytest.importorskip("uvicorn", reason="the extra serve is not installed")


def ask(url: str, picture: bytes, client: Any = httpx, **options: Any) -> httpx.Response:
    answer: httpx.Response = client.post(
        f"{url}/v1/segment",
        content=picture,
        params={"expression": ["a", "b"]},
        headers={"content-type": "image/png", **options.pop("headers", {})},
        timeout=60,
        **options,
    )
    return answer


def test_token(tiny_bundle: Path, tmp_path: Path, picture: bytes) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    with serving(
        tiny_bundle, tmp_path / "log", "--token-file", str(token), "--no-self-test"
    ) as server:
        for headers, status in (
            ({}, 401),
            ({"authorization": "Basic s3cret"}, 401),
            ({"authorization": "Bearer other"}, 403),
            ({"authorization": "Bearer s3cret"}, 200),
        ):
            assert ask(server.url, picture, headers=headers).status_code == status
        assert httpx.get(f"{server.url}/live").status_code == 200  # probes have none
        assert httpx.get(f"{server.url}/metrics").status_code == 401
        assert "s3cret" not in server.log.read_text()


@contextmanager
def load(url: str, picture: bytes, threads: int) -> Iterator[list[Any]]:
    """Requests without a pause; at the end a list of every status, or what went wrong instead."""
    outcomes: list[Any] = []
    enough = threading.Event()

    def client() -> None:
        with httpx.Client() as connection:
            while not enough.is_set():
                try:
                    outcomes.append(ask(url, picture, connection).status_code)
                except httpx.TransportError as error:
                    outcomes.append(error)
                    return

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(threads):
            pool.submit(client)
        try:
            yield outcomes
        finally:
            enough.set()


def wait_for(outcomes: list[Any], more: int) -> None:
    target, end = len(outcomes) + more, time.monotonic() + 60
    while len(outcomes) < target:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_sigterm_answers_what_was_taken(tiny_bundle: Path, tmp_path: Path, picture: bytes) -> None:
    with (
        serving(tiny_bundle, tmp_path / "log", "--no-self-test") as server,
        load(server.url, picture, 4) as outcomes,
    ):
        wait_for(outcomes, 20)
        assert server.stop() == 0
    # Each client's last request may find nobody; none was cut off in its answer.
    assert {outcome for outcome in outcomes if isinstance(outcome, int)} == {200}
    lost = [error for error in outcomes if not isinstance(error, int)]
    assert not any("incomplete" in str(error) for error in lost)
    log = server.log.read_text()
    assert log.count("POST /v1/segment 200") == outcomes.count(200)


def test_sighup_replaces_the_bundle_under_requests(
    own_bundle: Path, tmp_path: Path, picture: bytes
) -> None:
    with serving(own_bundle, tmp_path / "log", "--no-self-test") as server:

        def replaced(sentence: str, times: int) -> None:
            end = time.monotonic() + 60
            while server.log.read_text().count(sentence) < times:
                assert time.monotonic() < end
                time.sleep(0.02)

        known = ask(server.url, picture).json()["image"]["id"]
        with load(server.url, picture[:-1] + b"x", 3) as outcomes:
            for number in (1, 2):
                wait_for(outcomes, 10)
                server.process.send_signal(signal.SIGHUP)
                replaced("the bundle was replaced", number)
            # One that cannot be loaded leaves the old one in service.
            away = own_bundle.with_name("away")
            own_bundle.rename(away)
            server.process.send_signal(signal.SIGHUP)
            replaced("the bundle was not replaced", 1)
            wait_for(outcomes, 10)
        assert set(outcomes) == {200}
        assert httpx.get(f"{server.url}/ready").status_code == 200
        # What was kept was of the old model's size.
        again = httpx.post(
            f"{server.url}/v1/segment", json={"image_id": known, "expressions": ["a"]}
        )
        assert again.status_code == 404


def test_a_busy_server_refuses_clients_and_answers_probes(
    tiny_bundle: Path, tmp_path: Path, picture: bytes
) -> None:
    options = ("--waiting", "1", "--no-self-test")
    with (
        serving(tiny_bundle, tmp_path / "log", *options) as server,
        load(server.url, picture, 6) as outcomes,
    ):
        end = time.monotonic() + 60
        while not {200, 429} <= set(outcomes):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert {httpx.get(f"{server.url}/live").status_code for _ in range(10)} == {200}
    assert set(outcomes) == {200, 429}


def test_a_bundle_that_cannot_be_served_ends_the_server(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_bundle, tmp_path / "broken.bundle"))
    weights = broken / "weights.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    command = [sys.executable, "-m", "cris_deploy.cli.serve", str(broken), "--port=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "weights.bin was changed" in done.stderr
    assert done.returncode == 3
    missing = subprocess.run(
        [*command[:3], str(tmp_path / "none")], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr


def test_a_killed_worker_is_not_noticed_behind_haproxy(
    tiny_bundle: Path, tmp_path: Path, picture: bytes
) -> None:
    haproxy = shutil.which("haproxy")
    if haproxy is None:
        pytest.skip("haproxy is not installed")
    with serving(tiny_bundle, tmp_path / "log", "--workers", "2", "--no-self-test") as server:
        front = free_port()
        config = tmp_path / "haproxy.cfg"
        config.write_text(
            configuration(server.port, 2, front=front, max_body=20 * 2**20, timeout=30)
        )
        checked = subprocess.run(
            [haproxy, "-c", "-f", str(config)], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr
        assert "WARNING" not in checked.stderr
        proxy = subprocess.Popen([haproxy, "-f", str(config)])
        try:
            url = f"http://127.0.0.1:{front}"
            wait_ready(url)
            with load(url, picture, 4) as outcomes:
                for _ in range(3):
                    wait_for(outcomes, 30)
                    os.kill(workers(server.process.pid, 2)[0], signal.SIGKILL)
                wait_for(outcomes, 100)
            assert set(outcomes) == {200}
            # The metrics are those of all workers that live.
            text = httpx.get(f"{server.url}/metrics").text
            assert 'cris_requests_total{route="/v1/segment",status="200"}' in text
        finally:
            proxy.kill()
            proxy.wait()


def workers(parent: int, count: int) -> list[int]:
    """Processes that serve: uvicorn's children but for Python's own helper. Waits for so many."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = below(parent, "spawn_main")
        if len(found) == count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"there are not {count} workers")


def test_a_client_that_goes_away_ends_the_work() -> None:
    class Gone:
        async def receive(self) -> dict[str, str]:
            await asyncio.sleep(0)
            return {"type": "http.disconnect"}

    cancelled = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def serve() -> None:
        with pytest.raises(Refused) as refused:
            await apps._unless_gone(Gone(), work())  # type: ignore[arg-type]
        assert refused.value.status == 499
        await asyncio.sleep(0)

    asyncio.run(serve())
    assert cancelled == [True]


def test_slow_headers_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from uvicorn import Config, Server

    from cris_deploy.serving import protocol

    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.5)

    async def hello(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.8)  # an answer may take longer than headers may
        start = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"2")],
        }
        await send(start)
        await send({"type": "http.response.body", "body": b"ok"})

    async def run() -> tuple[bytes, bytes]:
        port = free_port()
        server = Server(
            Config(hello, port=port, http=protocol.BoundedProtocol, lifespan="off", log_config=None)
        )
        serving_ = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        first = await reader.readuntil(b"ok")
        writer.write(b"GET / HTTP/1.1\r\nHo")  # the second never ends
        rest = await asyncio.wait_for(reader.read(), 30)
        silent, other = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(silent.read(), 30) == b""
        writer.close()
        other.close()
        server.should_exit = True
        await serving_
        return first, rest

    first, rest = asyncio.run(run())
    assert first.startswith(b"HTTP/1.1 200")
    assert rest == b""


def test_an_answer_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker killed between two would leave half an answer, which no proxy sends again."""
    from uvicorn import Config, Server

    from cris_deploy.serving import protocol

    written: list[bytes] = []
    plain = protocol._OneWrite._flush

    def flush(self: Any) -> None:
        written.append(b"".join(self._waiting))
        plain(self)

    monkeypatch.setattr(protocol._OneWrite, "_flush", flush)

    async def hello(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def run() -> None:
        port = free_port()
        server = Server(
            Config(hello, port=port, http=protocol.BoundedProtocol, lifespan="off", log_config=None)
        )
        serving_ = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}")).text == "ok"
        server.should_exit = True
        await serving_

    asyncio.run(run())
    (answer, *rest) = written
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\nok")
    assert not any(rest)


def test_images_are_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    picture = Picture(np.zeros((2, 2, 3), np.uint8), 2, 2)
    store = ImageStore(2, 10)
    for name in "abc":
        store.put(name, picture)
    assert [store.get(name) is not None for name in "abc"] == [False, True, True]
    now = 9
    assert store.get("b") is picture
    now = 15
    assert store.get("c") is None
    assert store.get("b") is picture
    now = 30
    assert store.get("b") is None
    assert len(store) == 0
    nothing = ImageStore(0, 10)
    nothing.put("a", picture)
    assert nothing.get("a") is None


def test_options_go_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRIS_SERVE_OPTIONS", raising=False)
    monkeypatch.delenv("CRIS_SERVE_TOKEN", raising=False)
    with pytest.raises(InputError, match="start the server by cris-serve"):
        from_environment()
    options = ServeOptions("x.bundle", threads=3, timeout=2.5)
    to_environment(options, "t")
    assert from_environment() == (options, "t")
    to_environment(options, None)
    assert from_environment() == (options, None)


def test_batches_suit_the_device_unless_they_are_asked_for():
    options = ServeOptions("any.bundle", waiting=10)
    for device in Device:
        suits = BatchLimits.of(device)
        assert options.batch_limits(device, reserved=2) == dataclasses.replace(suits, waiting=12)
    asked = ServeOptions("any.bundle", batch_images=3, batch_pairs=5, batch_delay=0.5, waiting=7)
    assert asked.batch_limits(Device.CUDA) == BatchLimits(3, 5, delay=0.5, waiting=7)


@pytest.mark.parametrize(
    "bad", [{"timeout": 0}, {"max_body": 0}, {"batch_pairs": 1.5}, {"batch_delay": -1.0}]
)
def test_bad_options(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        ServeOptions("x.bundle", **bad)


def test_masks_other_than_pytorch_s_fail_the_self_test(tiny_bundle: Path) -> None:
    from cris_deploy import Engine
    from cris_deploy.bundle.reading import Bundle
    from cris_deploy.serving.self_test import self_test

    bundle = Bundle.open(tiny_bundle)

    class Others(Engine):
        def segment(self, image: Any, expression: Any) -> Any:
            found = super().segment(image, expression)
            found.mask[:] = ~found.mask
            return found

    with Engine(bundle, backend="onnxruntime") as good:
        self_test(good, bundle)
    with Others(bundle, backend="onnxruntime") as bad, pytest.raises(BundleError, match="mean IoU"):
        self_test(bad, bundle)
