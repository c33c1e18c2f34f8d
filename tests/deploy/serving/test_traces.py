"""Traces, received as a collector does."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from tests.helpers.server import serving

pytest.importorskip("opentelemetry.sdk", reason="the extra traces is not installed")

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()


def test_spans_of_a_request(
    tiny_bundle: Path,
    tmp_path: Path,
    picture: bytes,
    collector: tuple[str, list[bytes]],
) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    url, received = collector
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with serving(
        tiny_bundle, tmp_path / "log", "--traces", "--no-self-test", environment=environment
    ) as server:
        httpx.post(
            f"{server.url}/v1/segment",
            content=picture,
            params={"expression": "a"},
            headers={"content-type": "image/png", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"},
        ).raise_for_status()
        end = time.monotonic() + 30
        names: dict[str, str] = {}
        while not {"decode", "segment", "POST /v1/segment"} <= set(names):
            assert time.monotonic() < end, names
            time.sleep(0.02)
            for data in list(received):
                for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
                    for scope in resource.scope_spans:
                        names |= {span.name: span.trace_id.hex() for span in scope.spans}
    assert set(names.values()) == {TRACE}
