"""Requests to /v1/segment: multipart bodies, images, JSON, query and headers of any kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from tests.hard.fuzz.draw import Draw, damaged, edited, json_text
from tests.hard.fuzz.served import Served

READER: Final = ("cris_deploy.serving.requests", "cris_deploy.serving.guard")
OTHERS: Final = {
    "cris_deploy.serving.guard:Guard.__init__": "it reads nothing",
}
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


def make(folder: Path) -> Callable[[bytes], None]:
    served = Served(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    image = cv2.imencode(".png", pixels)[1].tobytes()
    identity = json.loads(_multipart_answer(served, image))["image"]["id"]
    again = {"image_id": identity, "expressions": ["a", "b"], "format": "json", "threshold": 0.5}
    whole = _multipart(_parts(Draw(b""), image, identity))

    def case(data: bytes) -> None:
        draw = Draw(data)
        kind = draw.whole(0, 7)
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
        headers = [(b"content-type", content), *_headers(draw, body)]
        cut = draw.whole(0, len(body))
        chunks = [body[:cut], b"", body[cut:]] if draw.flag() else [body]
        method = draw.choose((*["POST"] * 6, "GET", "PUT"))
        path = draw.choose((*["/v1/segment"] * 12, "/v1/segment/", "/", "/metrics", "/live"))
        answer = served.ask(method, path, query=query, headers=headers, chunks=chunks)
        if answer.headers.get("content-type") == "application/json":
            json.loads(answer.body)

    return case


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
