"""Requests of the Open Inference Protocol: its JSON, and binary tensors behind it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from tests.hard.fuzz.draw import WHOLES, Draw, damaged, edited, json_text
from tests.hard.fuzz.served import Served

READER: Final = ("cris_deploy.serving.v2",)
OTHERS: Final = {"cris_deploy.serving.v2:write_inference": "it writes"}
LENGTH: Final = b"inference-header-content-length"
NAMES: Final = ("masks", "rle", "boxes", "areas", "scores", "truncated", "other")


def make(folder: Path) -> Callable[[bytes], None]:
    served = Served(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    image = cv2.imencode(".png", pixels)[1].tobytes()
    plain = {
        "id": "7",
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": [6, 5, 3],
                "data": pixels.ravel().tolist(),
            },
            {"name": "expressions", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]},
        ],
        "outputs": [{"name": "rle"}, {"name": "boxes", "parameters": {"binary_data": True}}],
        "parameters": {"binary_data_output": False},
    }

    def case(data: bytes) -> None:
        draw = Draw(data)
        kind = draw.whole(0, 7)
        length: bytes | None = None
        if kind == 0:
            length, body = (
                draw.choose((None, b"3", b"-1", b"9" * 99, b"\xb2", b"", b"0" * 5000)),
                draw.rest(),
            )
        elif kind in (1, 2):
            body = json_text(edited(plain, draw))
        elif kind == 3:
            body = damaged(json_text(plain), draw)
        else:
            head, tensors = _binary(draw, image, pixels.tobytes())
            header = json_text(edited(head, draw) if kind == 7 else head)
            body = header + (damaged(tensors, draw) if kind == 6 else tensors)
            length = str(len(header) + draw.choose((0, 0, 0, 0, 1, -1, 10**6))).encode()
        headers = [(b"content-type", b"application/octet-stream")]
        if length is not None:
            headers.append((LENGTH, length))
        if draw.whole(0, 20) == 1:
            headers.append((b"content-encoding", b"gzip"))
        model = draw.choose((*["cris"] * 8, "other", "cris/versions/1", "cris/versions/9"))
        answer = served.ask("POST", f"/v2/models/{model}/infer", headers=headers, chunks=[body])
        _check(answer.headers, answer.body)

    return case


def _binary(draw: Draw, image: bytes, pixels: bytes) -> tuple[dict[str, Any], bytes]:
    """A header and the tensors behind it, of which now and then one is wrong."""
    words = [draw.choose((b"a", b"the cat", b"", b"\xff", b"x" * 300)) for _ in range(2)]
    listed = b"".join(len(word).to_bytes(4, "little") + word for word in words)
    encoded = draw.flag()
    picture = len(image).to_bytes(4, "little") + image if encoded else pixels
    shape = [1] if encoded else [6, 5, 3]
    inputs = []
    for name, kind, sides, content in (
        ("image", "BYTES" if encoded else "UINT8", shape, picture),
        ("expressions", "BYTES", [2], listed),
    ):
        size: Any = len(content)
        if draw.whole(0, 9) == 1:
            size = draw.choose((*WHOLES, "4", None, 1.5, True))
        if draw.whole(0, 9) == 1:
            sides = draw.choose(([], [0], [2**20, 2**20, 3], [6, 5, 4], [1, 1], [-1], [2, 1]))
        if draw.whole(0, 9) == 1:
            kind = draw.choose(("BYTES", "UINT8", "FP32", "x" * 99))
        parameters = {"binary_data_size": size}
        inputs.append({"name": name, "datatype": kind, "shape": sides, "parameters": parameters})
    outputs = [
        {"name": draw.choose(NAMES), "parameters": {"binary_data": draw.flag()}}
        for _ in range(draw.whole(0, 3))
    ]
    head = {"inputs": inputs, "outputs": outputs}
    if draw.flag():
        head["parameters"] = {"binary_data_output": draw.flag()}
    return head, picture + listed


def _check(headers: dict[str, str], body: bytes) -> None:
    """The answer is the protocol's, and as long as it says."""
    length = int(headers.get(LENGTH.decode(), len(body)))
    answer = json.loads(body[:length])
    sizes = [output.get("parameters", {}) for output in answer["outputs"]]
    assert length + sum(one.get("binary_data_size", 0) for one in sizes) == len(body)
    for output in answer["outputs"]:
        if "data" in output:
            assert len(output["data"]) == np.prod(output["shape"])
