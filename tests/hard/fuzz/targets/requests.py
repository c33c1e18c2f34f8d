"""Requests to /v1/segment: multipart bodies, images, JSON, query and headers of any kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from starlette.requests import ClientDisconnect

from cris_deploy.errors import InputError
from cris_deploy.serving.guard import OPEN, Guard
from cris_deploy.serving.metrics import Metrics
from tests.hard.fuzz.draw import Draw, damaged, edited, json_text
from tests.hard.fuzz.served import Served, exchange

READER: Final = ("cris_deploy.serving.requests", "cris_deploy.serving.guard")
LONGEST: Final = 2048
EDGE: Final = b"edge"
TYPES: Final = (
    *(b"multipart/form-data; boundary=edge", b"multipart/form-data", b"image/png", b"text/plain"),
    *(b"application/json", b"application/octet-stream", b"", b"image/", b"\xff\xfe", b"a/b; c=d"),
    *(b"multipart/form-data; boundary=" + b"x" * 300, b'multipart/form-data; boundary="'),
)
QUERIES: Final = (
    *(b"", b"expression=a", b"expression=a&expression=b", b"expression=", b"format=png"),
    *(b"expression=a&format=zip", b"expression=a&threshold=0.5", b"threshold=nan", b"format=x"),
    *(b"expression=a&threshold=1e999", b"expression=%ff%00", b"&&==&", b"expression=%F0%9F%92%A5"),
    *(b"expression=" + b"a" * 300, b"a=" + b"&a=" * 400, b"expression=a&threshold=-0.0"),
)


MOST: Final = 9
TOKEN: Final = "a token"
RIGHT: Final = (b"Bearer a token", b"bearer  a token ")
HEADERS: Final = (
    (
        b"authorization",
        (*RIGHT, b"Bearer", b"Bearer a token2", b"Basic a token", b"", b"Bearer \xff"),
    ),
    (b"content-length", (b"9", b"10", b"", b"-1", b"9" * 5000, b"\xb2", b"0")),
    (b"x-request-id", (b"a-1", b"a" * 65, b"", b"\xff", b"a\n")),
)


def make(folder: Path) -> Callable[[bytes], None]:
    served = Served(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    image = cv2.imencode(".png", pixels)[1].tobytes()
    identity = json.loads(_multipart_answer(served, image))["image"]["id"]
    again = {"image_id": identity, "expressions": ["a", "b"], "format": "json", "threshold": 0.5}
    whole = _multipart(_parts(Draw(b""), image, identity))

    metrics = Metrics()

    def case(data: bytes) -> None:
        draw = Draw(data)
        kind = draw.whole(0, 8)
        content, query = TYPES[0], draw.choose(QUERIES)
        if kind == 0:
            content, body = draw.choose(TYPES), draw.rest()
        elif kind == 1:
            body = damaged(whole, draw)
        elif kind == 2:
            body = _multipart(_parts(draw, image, identity))
        elif kind == 3:
            content, body = TYPES[4], damaged(json_text(again), draw)
        elif kind in (4, 5):
            content, body = TYPES[4], json_text(edited(again, draw))
        elif kind == 6:
            content, body = TYPES[2], damaged(image, draw) if draw.flag() else image
        else:
            content, body = draw.choose(TYPES), whole
        if kind == 8:
            _guarded(served, metrics, draw)
            return
        headers = [(b"content-type", content), *_headers(draw, body)]
        cut = draw.whole(0, len(body))
        chunks = [body[:cut], b"", body[cut:]] if draw.flag() else [body]
        method = draw.choose((*["POST"] * 6, "GET", "PUT"))
        path = draw.choose((*["/v1/segment"] * 12, "/v1/segment/", "/", "/metrics", "/live"))
        answer = served.ask(method, path, query=query, headers=headers, chunks=chunks)
        if answer.headers.get("content-type") == "application/json":
            json.loads(answer.body)

    return case


def _guarded(served: Served, metrics: Metrics, draw: Draw) -> None:
    """The guard alone: around an application that may fail, before a client that may leave."""
    token, path = draw.choose((None, TOKEN)), draw.choose(("/x", "/live"))
    kind = draw.choose((*["http"] * 7, "websocket"))
    end = draw.choose(("well", "well", "early", "late")) if kind == "http" else "well"
    headers = [(name, draw.choose(values)) for name, values in HEADERS if draw.flag()]
    chunks = [bytes(draw.choose((0, 1, MOST, MOST + 1))) for _ in range(draw.whole(1, 3))]
    client = draw.choose((*["waits"] * 12, *["leaves"] * 3, "stalls"))
    received: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = scope["type"] == "http"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            received.append(len(message["body"]))
            more = message["more_body"]
        if end == "early":
            raise OverflowError("as a mistake would")
        await send({"type": "http.response.start", "status": 200})
        if end == "late":
            raise OverflowError("as a mistake would")
        await send({"type": "http.response.body", "body": b""})

    guard = Guard(
        app,
        token=token,
        max_body=MOST,
        read_timeout=1e-3 if client == "stalls" else 60.0,
        metrics=metrics,
        tells_id=draw.flag(),
    )
    asked = exchange(guard, "POST", path, kind=kind, headers=headers, chunks=chunks, end=client)
    sent = served.run(asked)
    assert sum(received) <= MOST
    if not sent:
        assert client == "leaves"
        raise InputError("nobody is there")
    status = sent[0]["status"]
    if kind != "http":
        return
    assert (b"x-content-type-options", b"nosniff") in sent[0]["headers"]
    if token is not None and path not in OPEN and status not in (401, 403):
        assert dict(headers)[b"authorization"] in RIGHT
    assert status in (200, 401, 403, 408, 413) or (status == 500 and end == "early")
    if status != 200:
        assert set(json.loads(sent[1]["body"])) == {"error", "request_id"}
        raise InputError("refused")


def _multipart_answer(served: Served, image: bytes) -> bytes:
    parts = [(b'name="image"; filename="a.png"', image), (b'name="expression"', b"a")]
    return served.ask(
        "POST",
        "/v1/segment",
        headers=[(b"content-type", TYPES[0])],
        chunks=[_multipart(parts)],
    ).body


def _parts(draw: Draw, image: bytes, identity: str) -> list[tuple[bytes, bytes]]:
    """Parts of a form: usual ones, twice, of a wrong kind, or of none."""
    options = (
        (b'name="image"; filename="a.png"', image),
        (b'name="expression"', b"the cat"),
        (b'name="expression"', b"\xff\xfe"),
        (b'name="expression"; filename="x"', b"a"),
        (b'name="expression"', b"x" * 900),
        (b'name="image"', b"text"),
        (b'name="image"; filename="a.png"', damaged(image, draw)),
        (b'name="image"; filename=""', b""),
        (b'name="image_id"', identity.encode()),
        (b'name="image_id"', draw.take(8)),
        (b'name="format"', draw.choose((b"json", b"png", b"zip", b"", b"PNG", b"x" * 99))),
        (b'name="threshold"', draw.choose((b"0.5", b"2", b"nan", b"1e-400", b"", b"0x1", b"_"))),
        (draw.choose((b"", b"name=", b'name="', b'name="a', b"\0", b'name="\xff"')), b"x"),
    )
    chosen = [options[0], options[1]]
    if draw.flag():
        chosen = []
    return chosen + [draw.choose(options) for _ in range(draw.whole(0, 6))]


def _multipart(parts: list[tuple[bytes, bytes]]) -> bytes:
    whole = b"".join(
        b"--" + EDGE + b"\r\ncontent-disposition: form-data; " + head + b"\r\n\r\n" + body + b"\r\n"
        for head, body in parts
    )
    return whole + b"--" + EDGE + b"--\r\n"


def _headers(draw: Draw, body: bytes) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    if draw.flag():
        lengths = (str(len(body)).encode(), b"-1", b"9" * 400, b"x", b"0", "²".encode("latin-1"))
        found.append((b"content-length", draw.choose(lengths)))
    if draw.flag():
        names = (b"accept", b"x-request-id", b"authorization", b"content-encoding", b"traceparent")
        values = (b"image/png", b"a" * 65, b"Bearer x", b"\xff", b"", b"gzip", b"a-1")
        found.append((draw.choose(names), draw.choose(values)))
    return found
