"""A server whose bundle is moved, deleted, replaced and damaged under its requests.

Every mask is the golden one, of the bundle that was loaded; what cannot be loaded is not.
"""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from pycocotools import mask as coco

from cris_deploy import Engine
from tests.helpers import tiny_bundle as tiny
from tests.helpers.server import Server, serving

WORDS = ["a", "b"]
PICTURES = [
    np.random.default_rng(seed).integers(0, 256, (30 + seed, 40, 3), np.uint8) for seed in range(8)
]


def golden(bundle: Path) -> list[list[np.ndarray]]:
    with Engine(bundle, backend="onnxruntime", threads=1) as engine:
        return [[found.mask for found in engine.segment(one, WORDS)] for one in PICTURES]


@pytest.fixture
def server(own_bundle: Path, tmp_path: Path) -> Iterator[Server]:
    with serving(own_bundle, tmp_path / "log", "--no-self-test", "--kept-images", "0") as running:
        yield running


def masks(server: Server) -> list[list[np.ndarray]]:
    """Ask about all pictures, as no cache has seen them: they are sent as pixels."""
    found = []
    for pixels in PICTURES:
        asked = {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": list(pixels.shape),
                    "data": pixels.ravel().tolist(),
                },
                {"name": "expressions", "datatype": "BYTES", "shape": [2], "data": WORDS},
            ],
            "outputs": [{"name": "rle"}],
        }
        answer = httpx.post(f"{server.url}/v2/models/cris/infer", json=asked, timeout=60)
        assert answer.status_code == 200, answer.text
        counts = answer.json()["outputs"][0]["data"]
        size = list(pixels.shape[:2])
        found.append(
            [coco.decode({"size": size, "counts": each.encode()}).astype(bool) for each in counts]
        )
    return found


def same(left: list[list[np.ndarray]], right: list[list[np.ndarray]]) -> bool:
    return all(
        np.array_equal(a, b)
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def reload(server: Server, sentence: str) -> None:
    before = server.log.read_text().count(sentence)
    server.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 60
    while server.log.read_text().count(sentence) == before:
        assert time.monotonic() < end, server.log.read_text()
        time.sleep(0.02)


def test_moved_and_deleted(server: Server, own_bundle: Path) -> None:
    expected = golden(own_bundle)
    assert same(masks(server), expected)
    away = own_bundle.rename(own_bundle.with_name("away"))
    assert same(masks(server), expected)
    reload(server, "the bundle was not replaced")
    assert same(masks(server), expected)
    shutil.rmtree(away)
    assert same(masks(server), expected)
    reload(server, "the bundle was not replaced")
    assert same(masks(server), expected)
    assert httpx.get(f"{server.url}/ready").status_code == 200
    assert httpx.get(f"{server.url}/live").status_code == 200


def test_replaced(server: Server, own_bundle: Path, tmp_path: Path) -> None:
    old = golden(own_bundle)
    other = Path(shutil.copytree(own_bundle, tmp_path / "other"))
    tiny.change_weights(other, "project", lambda value: -value)
    new = golden(other)
    assert not same(old, new)
    own_bundle.rename(tmp_path / "away")
    other.rename(own_bundle)
    assert same(masks(server), old)  # until it is told to load again
    reload(server, "the bundle was replaced")
    assert same(masks(server), new)


def test_damaged_in_place(server: Server, own_bundle: Path) -> None:
    """Weights that are written into while a runtime has them mapped: no mask, or the golden one."""
    expected = golden(own_bundle)
    assert same(masks(server), expected)
    weights = own_bundle / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    with weights.open("r+b") as file:
        file.write(data)
    answer = httpx.post(
        f"{server.url}/v2/models/cris/infer",
        json={
            "inputs": [
                {"name": "image", "datatype": "UINT8", "shape": [31, 40, 3],
                 "data": PICTURES[1][::-1].ravel().tolist()},
                {"name": "expressions", "datatype": "BYTES", "shape": [1], "data": ["new words"]},
            ]
        },
        timeout=60,
    )  # fmt: skip
    assert answer.status_code == 503
    assert "cannot answer" in answer.json()["error"]
    assert "weights.bin is not what was opened" in server.log.read_text()
    reload(server, "the bundle was not replaced")
    assert httpx.get(f"{server.url}/live", timeout=60).status_code == 503
