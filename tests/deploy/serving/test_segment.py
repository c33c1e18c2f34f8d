"""/v1/segment: the engine's own masks, in every form, and one sentence for what is wrong."""

import hashlib
import io
import json
import socket
import struct
import time
import zipfile
import zlib
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from cris_deploy import Engine
from tests.helpers.server import Server

WORDS = ["a b", "c", "a b"]
SEGMENT = "/v1/segment"
ONE = {"expression": "a"}


def multipart(image: bytes, words: list[str], **fields: str) -> dict[str, Any]:
    return {"files": {"image": ("x.png", image)}, "data": {"expression": words, **fields}}


def test_json_is_the_engine_s_answer_bit_for_bit(
    server: Server, engine: Engine, picture: bytes
) -> None:
    expected = engine.segment(picture, WORDS)
    answer = httpx.post(server.url + SEGMENT, **multipart(picture, WORDS)).json()
    assert answer["image"]["id"] == hashlib.sha256(picture).hexdigest()
    assert (answer["image"]["width"], answer["image"]["height"]) == (40, 30)
    for found, right in zip(answer["results"], expected, strict=True):
        assert found["rle"] == right.rle()
        assert found["box"] == (None if right.box is None else list(right.box))
        assert found["area"] == right.area
        assert found["score"] == pytest.approx(right.score, abs=1e-6)
        assert found["truncated"] is right.truncated
        assert found["expression"] == right.expression


def test_all_ways_to_ask_give_the_same(server: Server, picture: bytes) -> None:
    first = httpx.post(server.url + SEGMENT, **multipart(picture, WORDS)).json()
    raw = httpx.post(
        server.url + SEGMENT,
        params={"expression": WORDS},
        content=picture,
        headers={"content-type": "image/png"},
    ).json()
    by_id = {"image_id": first["image"]["id"], "expressions": WORDS}
    again = httpx.post(server.url + SEGMENT, json=by_id).json()
    form = httpx.post(
        server.url + SEGMENT,
        data={"expression": WORDS},
        files={"image_id": (None, first["image"]["id"])},
    ).json()
    assert first == raw == again == form


def test_masks_as_pictures(server: Server, engine: Engine, picture: bytes) -> None:
    masks = [result.mask for result in engine.segment(picture, WORDS)]
    png = httpx.post(
        server.url + SEGMENT, **multipart(picture, WORDS[:1]), headers={"accept": "image/png"}
    )
    assert png.headers["content-type"] == "image/png"
    archive = httpx.post(server.url + SEGMENT, **multipart(picture, WORDS, format="zip"))
    with zipfile.ZipFile(io.BytesIO(archive.content)) as found:
        assert found.namelist() == ["1.png", "2.png", "3.png"]
        files = [png.content, *(found.read(name) for name in found.namelist())]
    for data, mask in zip(files, [masks[0], *masks], strict=True):
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(decoded, mask.astype(np.uint8) * 255)


def test_images_are_kept_for_the_last_few(server: Server, picture: bytes) -> None:
    def ask(image: bytes) -> str:
        answer = httpx.post(server.url + SEGMENT, **multipart(image, ["a"])).json()
        return str(answer["image"]["id"])

    first = ask(picture)
    for number in range(3):  # the server keeps three; bytes behind a PNG's end are another file
        ask(picture + bytes([number]))
    answer = httpx.post(server.url + SEGMENT, json={"image_id": first, "expressions": ["a"]})
    assert answer.status_code == 404
    assert "send it again" in answer.json()["error"]


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes that unpacks to all these pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(100_000), 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        (
            {"content": b"x", "headers": {"content-type": "text/plain"}},
            415,
            "body is text/plain",
        ),
        ({"content": b"x"}, 415, "of no stated type"),
        ({"data": ONE}, 415, "urlencoded"),
        ({"files": {"image": ("x", b"x")}}, 422, "0 expressions"),
        ({"files": {"image": ("x", b"")}, "data": ONE}, 422, "image"),
        ({"files": {"image": ("x", b"some text")}, "data": ONE}, 422, "not an image"),
        ({"files": {"image": (None, "some text")}, "data": ONE}, 422, "send a file"),
        ({"files": {"other": ("x", b"x")}, "data": ONE}, 422, "give an image"),
        ({"files": {"image": ("x", png_that_claims(100_000, 100_000))}, "data": ONE}, 422, "pixel"),
        ({"files": {"image": ("x", b"x")}, "data": {"expression": ["a"] * 9}}, 422, "1 to 8"),
        ({"files": {"image": ("x", b"x")}, "data": {"expression": ["a"] * 50}}, 422, "field"),
        ({"files": {"image": ("x", b"x")}, "data": {"expression": "a" * 1001}}, 422, "1,001 char"),
        ({"files": {"image": ("x", b"x")}, "data": {"expression": " "}}, 422, "no words"),
        (
            {"files": {"image": ("x", b"x")}, "data": {**ONE, "format": "gif"}},
            422,
            "json, png, zip",
        ),
        (
            {"files": {"image": ("x", b"x")}, "data": {"expression": ["a", "b"], "format": "png"}},
            422,
            "format=zip",
        ),
        ({"files": {"image": ("x", bytes(200_001))}, "data": ONE}, 413, "200,000 bytes"),
        ({"content": (bytes(1000) for _ in range(300))}, 415, "no stated type"),
        (
            {
                "content": (bytes(1000) for _ in range(300)),  # no length is stated
                "headers": {"content-type": "image/png"},
                "params": ONE,
            },
            413,
            "200,000 bytes",
        ),
        ({"json": {"image_id": "x", "expressions": "a"}}, 422, "expressions is"),
        ({"json": {"image_id": "x", "expressions": ["a"], "colour": 1}}, 422, "colour"),
        ({"json": {"image_id": "x", "expressions": ["a"]}}, 404, "send it again"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "JSON"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 422, "boundary"),
    ],
)
def test_refusals(server: Server, request_: dict[str, Any], status: int, sentence: str) -> None:
    answer = httpx.post(server.url + SEGMENT, **request_, timeout=20)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert set(problem) == {"error", "request_id"}
    assert sentence.lower() in problem["error"].lower()
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "server" not in answer.headers
    for secret in ("Traceback", "/tmp", "site-packages", "onnxruntime"):
        assert secret not in answer.text


def test_request_ids_come_back_unless_they_are_odd(server: Server) -> None:
    for given, kept in (("abc-1.2_3", True), ("x" * 65, False), ("a b", False)):
        answer = httpx.get(f"{server.url}/nowhere", headers={"x-request-id": given})
        assert answer.status_code == 404
        assert (answer.headers["x-request-id"] == given) is kept
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


HEAD = b"POST /v1/segment?expression=a HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"


def test_a_body_that_does_not_come_is_not_waited_for(server: Server, picture: bytes) -> None:
    with connect(server) as slow:
        slow.sendall(HEAD + b"Content-Length: 1000\r\n\r\nabc")
        assert httpx.post(server.url + SEGMENT, **multipart(picture, ["a"])).status_code == 200
        assert b"408" in slow.recv(100).split(b"\r\n")[0]
        while slow.recv(1000):  # and the connection is closed
            pass


def test_a_body_cut_short_is_no_request(server: Server, picture: bytes) -> None:
    with connect(server) as cut:
        cut.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + picture[:500])
    assert httpx.post(server.url + SEGMENT, **multipart(picture, ["a"])).status_code == 200
    assert 'status="500"' not in httpx.get(f"{server.url}/metrics").text


def test_many_slow_clients_do_not_keep_others_out(server: Server, picture: bytes) -> None:
    slow = [connect(server) for _ in range(100)]
    try:
        for one in slow:
            one.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nX-")
        assert httpx.post(server.url + SEGMENT, **multipart(picture, ["a"])).status_code == 200
    finally:
        for one in slow:
            one.close()


def test_metrics_count_what_happened(server: Server, picture: bytes) -> None:
    def value(name: str) -> float:
        text = httpx.get(f"{server.url}/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    names = {
        'cris_requests_total{route="/v1/segment",status="200"}': 1,
        'cris_stage_seconds_count{stage="segment"}': 1,
        'cris_batch_size_sum{stage="segment"}': 3,
        "cris_truncated_expressions_total": 1,
        'cris_cache_misses_total{cache="pictures"}': 1,
    }
    before = {name: value(name) for name in names}
    image = picture + time.time_ns().to_bytes(8, "big")  # one that it does not know
    httpx.post(server.url + SEGMENT, **multipart(image, ["a", "b", "c " * 40])).raise_for_status()
    assert {name: value(name) - before[name] for name in names} == names
    assert value("cris_waiting_requests") == 0


def test_log_is_json_with_the_request_s_id(server: Server) -> None:
    httpx.get(f"{server.url}/nowhere", headers={"x-request-id": "find-me"})
    end = time.monotonic() + 20
    while "find-me" not in (text := server.log.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    (line,) = [entry for entry in lines if entry.get("request_id") == "find-me"]
    assert (line["status"], line["route"]) == (404, "none")


def test_openapi_document_names_what_is_served(server: Server) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    assert {"/v1/segment", "/live", "/ready", "/metrics"} <= set(document["paths"])
    described = document["paths"]["/v1/segment"]["post"]
    assert set(described["requestBody"]["content"]) == {
        "multipart/form-data",
        "image/*",
        "application/json",
    }
    assert "429" in described["responses"]
