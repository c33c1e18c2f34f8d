"""Values out of a case's bytes: the same bytes give the same values, and no bytes give zeros."""

import json
import math
import struct
from collections.abc import Sequence
from copy import copy
from typing import Any, Final, TypeVar

_T = TypeVar("_T")

DEEP: Final = "@deep@"
WHOLES: Final = (0, 1, -1, 2, 3, 255, 256, 4096, 65536, 2**31 - 1, 2**31, 2**63, 2**64, -(2**63))
REALS: Final = (0.0, -0.0, 1.0, 0.5, math.nan, math.inf, -math.inf, 5e-324, 1.8e308, 1e-310)
TEXTS: Final = (
    *("", " ", "a", "..", "../x", "/etc/passwd", "a/b", "a\\b", "C:x", "\0", "\n", "é", "\ud800"),
    *(
        DEEP,
        "a" * 300,
        "x" * 3000,
        "\u202e",
        "💥" * 20,
        "NaN",
        "-1",
        "1e999",
        "%s%n",
        "sm86",
        "0" * 64,
    ),
)


class Draw:
    """Takes values from the front of `data`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def left(self) -> int:
        """Bytes that are not taken yet."""
        return max(0, len(self._data) - self._at)

    def take(self, count: int) -> bytes:
        """The next bytes, zeros behind the end."""
        part = self._data[self._at : self._at + count]
        self._at += count
        return part.ljust(count, b"\0")

    def rest(self) -> bytes:
        """All that is left."""
        part = self._data[self._at :]
        self._at = len(self._data)
        return part

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        span = high - low + 1
        size = max(1, (span.bit_length() + 7) // 8)
        return low + int.from_bytes(self.take(size), "little") % span

    def flag(self) -> bool:
        """True or False."""
        return bool(self.take(1)[0] & 1)

    def choose(self, options: Sequence[_T]) -> _T:
        """One of these."""
        return options[self.whole(0, len(options) - 1)]

    def real(self) -> float:
        """A float: a special one, any, or one near to the usual."""
        kind = self.whole(0, 2)
        if kind == 0:
            return self.choose(REALS)
        if kind == 1:
            return float(struct.unpack("<d", self.take(8))[0])
        return self.whole(-(2**20), 2**20) / 2**10

    def text(self) -> str:
        """Text: a special one, or any."""
        if self.flag():
            return self.choose(TEXTS)
        return self.take(self.whole(0, 24)).decode("utf-8", "surrogateescape")

    def value(self, depth: int = 0) -> Any:
        """What JSON or a pickle of plain values may hold."""
        kind = self.whole(0, 7 if depth < 4 else 5)
        if kind == 0:
            return self.choose((None, True, False))
        if kind == 1:
            return self.choose(WHOLES)
        if kind == 2:
            return self.whole(-300, 300)
        if kind == 3:
            return self.real()
        if kind in (4, 5):
            return self.text()
        if kind == 6:
            return [self.value(depth + 1) for _ in range(self.whole(0, 3))]
        return {self.text(): self.value(depth + 1) for _ in range(self.whole(0, 3))}


def edited(document: Any, draw: Draw) -> Any:
    """A copy of a document of dicts and lists with a few places changed."""
    root = [copy(document)]
    for _ in range(draw.whole(1, 3)):
        holder: Any = root
        key: Any = 0
        while isinstance(holder[key], (dict, list)) and holder[key] and draw.whole(0, 7):
            # Only what leads to a change is copied.
            holder[key] = holder = copy(holder[key])
            key = draw.choose(list(holder) if isinstance(holder, dict) else range(len(holder)))
        _change(holder, key, draw)
    return root[0]


def _change(holder: Any, key: Any, draw: Draw) -> None:
    kind = draw.whole(0, 6)
    if kind == 0 and len(holder) > 1:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.text()] = draw.value()
    elif kind == 1:
        holder.append(holder[key])
    elif kind == 2 and isinstance(holder[key], int):
        holder[key] += draw.choose((-1, 1, 2**16, -(2**40)))
    elif kind == 2 and isinstance(holder[key], str):
        holder[key] = holder[key][: draw.whole(0, 12)] + draw.text()
    elif kind == 3:
        holder[key] = [holder[key]] * draw.whole(0, 3)
    elif kind == 4:
        nested: Any = holder[key]
        for _ in range(draw.choose((2, 60))):
            nested = [nested]
        holder[key] = nested
    else:
        holder[key] = draw.value()


def damaged(data: bytes, draw: Draw) -> bytes:
    """The same bytes with a few of them changed, cut, doubled or put elsewhere."""
    for _ in range(draw.whole(1, 4)):
        at = draw.whole(0, max(0, len(data) - 1))
        kind = draw.whole(0, 5)
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            data = data[:at] + draw.take(draw.whole(1, 8)) + data[at:]
        elif kind == 2:
            data = data[:at] + data[at + draw.whole(1, 16) :]
        elif kind == 3:
            part = draw.take(draw.whole(1, 4))
            data = data[:at] + part + data[at + len(part) :]
        elif kind == 4:
            size = draw.choose((1, 2, 4, 8))
            number = draw.choose(WHOLES) % 256**size
            data = data[:at] + number.to_bytes(size, "little") + data[at + size :]
        else:
            other = draw.whole(0, max(0, len(data) - 1))
            data = data[:at] + data[other : other + draw.whole(1, 32)] + data[at:]
    return data


def json_text(value: Any) -> bytes:
    """JSON as bytes; the text DEEP stands for lists inside each other, deeper than Python goes."""
    text = json.dumps(value).replace(f'"{DEEP}"', "[" * 3000 + "]" * 3000)
    return text.encode("utf-8", "surrogatepass")
