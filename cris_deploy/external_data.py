"""Which files beside it an ONNX file reads its weights from, without the onnx package.

Runtimes open whatever a graph's external data names, so a bundle has to know: a file that no hash
covers could change what the model computes. Only the messages on the way to an initializer or a
constant are looked into (onnx.proto, fields by number), and only those that hold such a name.
"""

from collections.abc import Iterator
from typing import Final

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
# Wire types
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def locations(model: bytes) -> set[str]:
    """Give the locations of external data as they are written; ValueError if it is no ONNX file."""
    return set(_locations(model, "model", 0))


def _locations(message: bytes, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("messages lie too deep inside each other")
    if kind == "entry":
        pairs = list(_fields(message))
        if any(number == _KEY and value == _LOCATION for number, value in pairs):
            yield from (value.decode() for number, value in pairs if number == _VALUE)
        return
    for number, value in _fields(message):
        inner = _INSIDE[kind].get(number)
        if inner is not None and _LOCATION in value:
            yield from _locations(value, inner, depth + 1)


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields with a length; the others are skipped."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if tag < 8:
            raise ValueError(f"a field has number 0 at byte {at}")
        if wire == _VARINT:
            _, at = _varint(message, at)
        elif wire == _BYTES:
            length, at = _varint(message, at)
            yield tag >> 3, message[at : at + length]
            at += length
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
    if at != len(message):
        raise ValueError("a field goes beyond the end")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
    raise ValueError(f"a number is cut at byte {at}")
