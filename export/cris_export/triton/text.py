"""Messages in the text format of Protocol Buffers, as far as a config.pbtxt needs it.

Triton's schema comes with its client and nowhere else, and an export should not need that: the
tests hold what is written against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias, Union


class Word(str):
    """A value of an enumeration: it has no quotes."""

    __slots__ = ()


Value: TypeAlias = Union[str, int, bool, "Message", Sequence["Value"]]
Message: TypeAlias = Mapping[str, Value]


def to_text(message: Message, depth: int = 0) -> str:
    """Write a message, a field a line; a list of messages as a block for each."""
    indent, lines = "  " * depth, []
    for name, value in message.items():
        if isinstance(value, Sequence) and not isinstance(value, str):
            if value and not isinstance(value[0], Mapping):
                lines.append(f"{indent}{name}: [ {', '.join(map(_scalar, value))} ]\n")
                continue
            blocks = value
        elif isinstance(value, Mapping):
            blocks = [value]
        else:
            lines.append(f"{indent}{name}: {_scalar(value)}\n")
            continue
        for block in blocks:
            assert isinstance(block, Mapping)  # a list has one kind of entries
            lines.append(f"{indent}{name} {{\n{to_text(block, depth + 1)}{indent}}}\n")
    return "".join(lines)


def entries(values: Mapping[str, Value]) -> list[Message]:
    """Give a map field as the text format has it."""
    return [{"key": key, "value": value} for key, value in values.items()]


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (Word, int)) else json.dumps(value)
