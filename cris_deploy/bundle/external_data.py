"""Which files beside it an ONNX file reads its weights from, without the onnx package.

Runtimes open whatever a graph's external data names, so a bundle has to know: a file that no hash
covers could change what the model computes. Only the messages on the way to an initializer or a
constant are looked into (onnx.proto, fields by number), and only those that hold such a name.
"""

from collections.abc import Iterator
from typing import Final

from cris_deploy.bundle.protobuf import Wire, fields

_LOCATION: Final = b"location"
# Field number -> kind of message, by kind of message.
_INSIDE: Final = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_KEY, _VALUE = 1, 2  # of an entry of external data
_DEEPEST: Final = 64  # protobuf itself reads at most 100 messages inside each other


def locations(model: bytes) -> set[str]:
    """Give the locations of external data as they are written; ValueError if it is no ONNX file."""
    return set(_locations(memoryview(model), "model", 0))


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("messages lie too deep inside each other")
    if kind == "entry":
        pairs = list(_parts(message))
        if any(number == _KEY and bytes(value) == _LOCATION for number, value in pairs):
            yield from (str(value, "utf-8") for number, value in pairs if number == _VALUE)
        return
    for number, value in _parts(message):
        inner = _INSIDE[kind].get(number)
        if inner is not None and _LOCATION in bytes(value):
            yield from _locations(value, inner, depth + 1)


def _parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields that hold strings or messages."""
    for number, wire, value in fields(message):
        if wire is Wire.BYTES and isinstance(value, memoryview):
            yield number, value
