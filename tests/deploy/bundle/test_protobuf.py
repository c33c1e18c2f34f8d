"""The wire format: every way a field may lie there, and where a message ends too early."""

import pytest

from cris_deploy.bundle.protobuf import Field, Wire, fields


def test_every_way_a_field_lies() -> None:
    message = b"".join(
        (
            b"\x08\x96\x01",  # field 1, a varint: 150
            b"\x08\x7f",  # and the largest of one byte
            b"\x11" + bytes(range(8)),  # field 2, eight bytes
            b"\x1a\x03abc",  # field 3, bytes
            b"\x25wxyz",  # field 4, four bytes
            b"\x80\x01" + b"\xff" * 9 + b"\x01",  # field 16, the largest varint
        )
    )

    assert list(fields(memoryview(message))) == [
        Field(1, Wire.VARINT, 150),
        Field(1, Wire.VARINT, 127),
        Field(2, Wire.EIGHT_BYTES, memoryview(bytes(range(8)))),
        Field(3, Wire.BYTES, memoryview(b"abc")),
        Field(4, Wire.FOUR_BYTES, memoryview(b"wxyz")),
        Field(16, Wire.VARINT, 2**64 - 1),
    ]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x08", "a number is cut at byte 1"),
        (b"\x08" + b"\xff" * 10, "a number is cut at byte 11"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "a number is cut at byte 11"),  # no 64 bits have so many
        (b"\x00", "a field has number 0 at byte 1"),
        (b"\x0b", "3 is not a valid Wire"),
        (b"\x0e", "6 is not a valid Wire"),
        (b"\x11" + bytes(7), "a field goes beyond the end"),
        (b"\x1a\x03ab", "a field goes beyond the end"),
        (b"\x25" + bytes(3), "a field goes beyond the end"),
    ],
)
def test_what_is_no_message(message: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        list(fields(memoryview(message)))
