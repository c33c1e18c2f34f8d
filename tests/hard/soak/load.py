"""What a soak asks: mixed requests, each with the answer that it has to get.

The masks that are expected are an engine's of the same bundle, asked one by one before the server
starts. A batch may round another way at a mask's rim, so what is not equal to the bit is counted,
and is a failure below `LEAST_IOU`.
"""

import io
import json
import random
import socket
import warnings
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import httpx
import numpy as np
from pycocotools import mask as coco

from cris_deploy import Engine, TruncationWarning

LEAST_IOU = 0.995
WORDS = (
    "the purple cross",
    "the small red star",
    "the leftmost red square",
    "the bottommost heart",
)
SIDES = (90, 160, 240, 416, 700, 1200)
FORMS = (".png", ".jpg", ".webp")
BURST = 8
KEPT_IMAGES = 8
"""Of the server: fewer than there are pictures, so that it has to forget."""


@dataclass(frozen=True)
class Picture:
    """An encoded file, its pixels (H, W, 3) uint8 RGB, and a mask (H, W) bool for each of WORDS."""

    data: bytes
    pixels: np.ndarray
    masks: tuple[np.ndarray, ...]


def pictures(bundle: Path, scene: Path) -> list[Picture]:
    """Give a scene in many sizes and forms, with the masks that it has."""
    whole = cv2.imread(str(scene))
    assert whole is not None
    found = []
    with (
        Engine(bundle, backend="onnxruntime", threads=1) as engine,
        warnings.catch_warnings(action="ignore", category=TruncationWarning),  # of tiny models
    ):
        for number, side in enumerate(SIDES * 3):
            turned = np.ascontiguousarray(whole[:, ::-1] if number % 2 else whole)
            small = cv2.resize(turned, (side + number, side), interpolation=cv2.INTER_AREA)
            done, data = cv2.imencode(FORMS[number % 3], small)
            assert done
            read = cv2.imdecode(data, cv2.IMREAD_COLOR)
            masks = tuple(result.mask for result in engine.segment(data.tobytes(), list(WORDS)))
            found.append(Picture(data.tobytes(), cv2.cvtColor(read, cv2.COLOR_BGR2RGB), masks))
    return found


@dataclass
class Load:
    """Asks a server; every method is one request, or one burst of them."""

    url: str
    known: list[Picture]
    seed: int = 0
    done: Counter = field(default_factory=Counter)
    inexact: int = 0
    least_iou: float = 1.0
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._client = httpx.Client(base_url=self.url, timeout=60)
        self._kinds = {
            self.file: 6, self.again: 6, self.png: 3, self.archive: 2, self.pixels: 3,
            self.binary: 3, self.probes: 2, self.refused: 3, self.gone: 1,
        }  # fmt: skip

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def once(self) -> str:
        """Ask one thing, drawn at random; what fails is kept, never raised. Give its kind."""
        (kind,) = self._random.choices(list(self._kinds), list(self._kinds.values()))
        self._guarded(kind.__name__, kind)
        return kind.__name__

    def burst(self) -> None:
        """Ask BURST things at once, by clients of their own."""

        def one(number: int) -> None:
            with httpx.Client(base_url=self.url, timeout=60) as client:
                picture = self.known[number % len(self.known)]
                self._check_json(picture, self._send(client, picture, WORDS))

        first = self._random.randrange(len(self.known))
        with ThreadPoolExecutor(BURST) as pool:
            list(pool.map(lambda n: self._guarded("burst", one, first + n // 2), range(BURST)))

    def _guarded(self, name: str, ask, *arguments) -> None:
        self.done[name] += 1
        try:
            ask(*arguments)
        except Exception as error:  # a soak goes on, and tells all of it at its end
            self.failures.append(f"{name}: {type(error).__name__}: {error}"[:300])

    def _picture(self) -> Picture:
        return self._random.choice(self.known)

    def _send(self, client: httpx.Client, picture: Picture, words, **fields) -> httpx.Response:
        files = {"image": ("x", picture.data)}
        data = {"expression": list(words), **fields}
        return client.post("/v1/segment", files=files, data=data).raise_for_status()

    def file(self) -> None:
        """Send a file and all words."""
        picture = self._picture()
        self._check_json(picture, self._send(self._client, picture, WORDS))

    def again(self) -> None:
        """Send a file, then ask again by its id."""
        picture = self._picture()
        known = self._send(self._client, picture, WORDS[:1]).json()["image"]["id"]
        asked = {"image_id": known, "expressions": list(WORDS)}
        self._check_json(picture, self._client.post("/v1/segment", json=asked))

    def png(self) -> None:
        """Ask for one mask as PNG."""
        picture, number = self._picture(), self._random.randrange(len(WORDS))
        answer = self._send(self._client, picture, [WORDS[number]], format="png")
        self._check(picture.masks[number], _from_png(answer.content))

    def archive(self) -> None:
        """Ask for all masks as ZIP."""
        picture = self._picture()
        answer = self._send(self._client, picture, WORDS, format="zip")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            for number, mask in enumerate(picture.masks, start=1):
                self._check(mask, _from_png(archive.read(f"{number}.png")))

    def pixels(self) -> None:
        """Send pixels as a binary tensor of the Open Inference Protocol."""
        picture = self._picture()
        shape = list(picture.pixels.shape)
        self._infer(picture, "UINT8", shape, picture.pixels.tobytes())

    def binary(self) -> None:
        """Send a file as a binary element of the Open Inference Protocol."""
        picture = self._picture()
        self._infer(picture, "BYTES", [1], _element(picture.data))

    def _infer(self, picture: Picture, kind: str, shape: list[int], data: bytes) -> None:
        words = b"".join(_element(word.encode()) for word in WORDS)
        inputs = [
            {"name": name, "datatype": datatype, "shape": size,
             "parameters": {"binary_data_size": len(blob)}}
            for name, datatype, size, blob in (
                ("image", kind, shape, data), ("expressions", "BYTES", [len(WORDS)], words),
            )
        ]  # fmt: skip
        wanted = [{"name": "masks", "parameters": {"binary_data": True}}]
        header = json.dumps({"inputs": inputs, "outputs": wanted}).encode()
        name = "inference-header-content-length"
        answer = self._client.post(
            "/v2/models/cris/infer", content=header + data + words, headers={name: str(len(header))}
        ).raise_for_status()
        masks = np.frombuffer(answer.content[int(answer.headers[name]) :], np.bool_)
        for expected, mask in zip(
            picture.masks, masks.reshape(len(WORDS), *picture.pixels.shape[:2]), strict=True
        ):
            self._check(expected, mask)

    def probes(self) -> None:
        """Ask what an orchestrator asks."""
        for path in ("/live", "/ready", "/metrics", "/v2/models/cris"):
            self._client.get(path).raise_for_status()

    def refused(self) -> None:
        """Ask what is to be refused, each with its own status."""
        data = {"expression": "a"}
        for expected, asked in (
            (422, {"files": {"image": ("x", b"no image")}, "data": data}),
            (422, {"files": {"image": ("x", self.known[0].data[:200])}, "data": data}),
            (404, {"json": {"image_id": "unknown", "expressions": ["a"]}}),
            (422, {"content": b"{", "headers": {"content-type": "application/json"}}),
            (415, {"content": b"text", "headers": {"content-type": "text/plain"}}),
        ):
            answer = self._client.post("/v1/segment", **asked)
            assert answer.status_code == expected, (answer.status_code, answer.text)
            assert answer.json()["error"]

    def gone(self) -> None:
        """Begin a request and go away in the middle of it."""
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/segment HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
                b"content-length: 100000\r\n\r\n" + bytes(1000)
            )

    def _check_json(self, picture: Picture, answer: httpx.Response) -> None:
        results = answer.raise_for_status().json()["results"]
        for expected, result in zip(picture.masks, results, strict=True):
            found = coco.decode(result["rle"])
            self._check(expected, found.astype(bool))

    def _check(self, expected: np.ndarray, found: np.ndarray) -> None:
        assert found.shape == expected.shape, (found.shape, expected.shape)
        if np.array_equal(expected, found):
            return
        self.inexact += 1
        iou = float((expected & found).sum() / (expected | found).sum())
        self.least_iou = min(self.least_iou, iou)
        assert iou >= LEAST_IOU, f"a wrong mask: IoU {iou:.4f} with the golden one"


def _element(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def _from_png(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) > 127
