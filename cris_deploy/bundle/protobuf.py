"""The wire format of protocol buffers, as far as ONNX files need it, without the onnx package.

A message is read field by field; what a field means is the caller's to know (onnx.proto).
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple


class Wire(IntEnum):
    """How a field lies in a message."""

    VARINT = 0
    EIGHT_BYTES = 1
    BYTES = 2
    FOUR_BYTES = 5


class Field(NamedTuple):
    """A field: its number, how it lies there, and the number of a varint or the bytes of others."""

    number: int
    wire: Wire
    value: int | memoryview


def fields(message: memoryview) -> Iterator[Field]:
    """Give a message's fields in their order; ValueError if it is no message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag < 8:
            raise ValueError(f"a field has number 0 at byte {at}")
        wire = Wire(tag & 7)  # a ValueError of its own
        if wire is Wire.VARINT:
            number, at = _varint(message, at)
            yield Field(tag >> 3, wire, number)
            continue
        if wire is Wire.BYTES:
            length, at = _varint(message, at)
        else:
            length = 8 if wire is Wire.EIGHT_BYTES else 4
        if at + length > len(message):
            raise ValueError("a field goes beyond the end")
        yield Field(tag >> 3, wire, message[at : at + length])
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    result = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
        shift += 7
    raise ValueError(f"a number is cut at byte {at}")
