"""ONNX files, read without onnx: where their weights lie, and the hash of each."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cris_deploy.bundle.contents import check_external_data
from cris_deploy.bundle.fingerprints import changed_weights, fingerprint
from cris_deploy.bundle.manifest import GraphName, Manifest
from tests.hard.fuzz.draw import WHOLES, Draw, damaged

READER: Final = (
    "cris_deploy.bundle.protobuf",
    "cris_deploy.bundle.external_data",
    "cris_deploy.bundle.fingerprints",
)
LONGEST: Final = 2048
NAMES: Final = (b"weights.bin", b"../weights.bin", b"/etc/passwd", b"", b"\xff", b"a\0b", b"none")


def make(folder: Path) -> Callable[[bytes], None]:
    data = Path(__file__).parents[3] / "data/format1"
    manifest = Manifest.from_json((data / "manifest.json").read_bytes(), "manifest.json")
    (folder / "weights.bin").write_bytes(bytes(range(256)))
    valid = _model(Draw(b""))
    files = {GraphName.FULL: "full.onnx", GraphName.TEXT_ENCODER: "text_encoder.onnx"}
    for file in files.values():
        (folder / file).write_bytes(valid)
    recorded = fingerprint(folder, files)

    def case(raw: bytes) -> None:
        draw = Draw(raw)
        kind = draw.whole(0, 3)
        contents = (draw.rest, lambda: damaged(valid, draw), lambda: _model(draw))
        made = contents[kind % 3]()
        (folder / "full.onnx").write_bytes(damaged(made, draw) if kind == 3 else made)
        if draw.flag():
            changed_weights(folder, files, recorded)
        else:
            fingerprint(folder, {GraphName.FULL: "full.onnx"})
        check_external_data(folder, "full.onnx", manifest)

    return case


def _number(value: int) -> bytes:
    out = bytearray()
    value &= 2**64 - 1
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def _field(number: int, content: bytes) -> bytes:
    return _number(number << 3 | 2) + _number(len(content)) + content


def _entry(key: bytes, value: bytes) -> bytes:
    return _field(13, _field(1, key) + _field(2, value))


def _tensor(draw: Draw) -> bytes:
    tensor = _field(8, draw.choose((b"w", b"v", b"", b"\xfe")))
    kind = draw.whole(0, 5)
    if kind == 1:
        return tensor + _field(draw.choose((4, 5, 6, 7, 9, 10, 11)), draw.take(8))
    if kind == 2:
        return tensor + _number(draw.choose((5 << 3, 7 << 3 | 1, 4 << 3 | 5))) + draw.take(8)
    tensor += _entry(b"location", draw.choose(NAMES))
    if kind > 2:
        length = str(draw.choose((*WHOLES, 16, "x", "1_0", " 3", "9" * 5000))).encode()
        tensor += _entry(draw.choose((b"offset", b"length")), length)
    return tensor


def _model(draw: Draw) -> bytes:
    """A model of a graph, with tensors where tensors may be, at times very deep."""
    tensor = _tensor(draw)
    node = _field(1, b"w") + _field(3, b"node") + _field(4, b"Add")
    place = draw.whole(0, 7)
    if place == 1:
        node += _field(5, _field(5, tensor))  # a constant's value
    elif place == 2:
        node += _field(5, _field(10, tensor))
    elif place == 3:
        node += _field(5, _field(22, _field(1, tensor)))
    graph = _field(5, tensor) + _field(1, node)
    if place == 4:
        graph += _field(15, _field(2, tensor))
    if place == 5:
        for _ in range(draw.choose((1, 10, 80))):  # subgraphs
            graph = _field(1, _field(5, _field(6, graph)))
    model = _field(7, graph)
    if place == 6:
        model += _field(20, _field(1, graph))
    elif place == 7:
        model += _field(25, _field(7, node) + _field(11, _field(5, tensor)))
    return model
