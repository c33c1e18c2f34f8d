"""JSON documents read field by field, each with its place in the document for error messages."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from cris_deploy.errors import BundleError

_T = TypeVar("_T")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Field:
    """A JSON value with its place in the document.

    Every reader raises BundleError, naming `where`, the field and the `remedy`.
    """

    value: Any
    where: str
    path: str
    remedy: str = "export the bundle again"

    def wrong(self, expected: str) -> BundleError:
        """Say what was found and what was expected."""
        found = json.dumps(self.value, ensure_ascii=False)
        found = found if len(found) <= 60 else found[:57] + "..."
        return BundleError(
            f"{self.where}: {self.path or 'the document'} is {found}, expected {expected}: "
            + self.remedy
        )

    def __getitem__(self, key: str) -> "Field":
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        path = f"{self.path}.{key}" if self.path else key
        if key not in self.value:
            raise BundleError(f"{self.where}: {path} is missing: {self.remedy}")
        return Field(self.value[key], self.where, path, self.remedy)

    def items(self) -> list[tuple[str, "Field"]]:
        """Give an object's members in their order."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return [(key, self[key]) for key in self.value]

    def each(self, read: Callable[["Field"], _T], most: int | None = None) -> tuple[_T, ...]:
        """Read all elements of a list, `most` many."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        if most is not None and len(self.value) > most:
            raise self.wrong(f"at most {most:,} elements, not {len(self.value):,}")
        return tuple(
            read(Field(value, self.where, f"{self.path}[{index}]", self.remedy))
            for index, value in enumerate(self.value)
        )

    def optional(self, key: str, read: Callable[["Field"], _T]) -> _T | None:
        """None if the key is null, or absent as in bundles of earlier versions."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return None if self.value.get(key) is None else read(self[key])

    def text(self) -> str:
        """Read a string."""
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def integer(self, minimum: int = 0, maximum: int | None = None) -> int:
        """Read an integer."""
        # bool is an int, too
        if type(self.value) is not int or self.value < minimum:
            raise self.wrong(f"an integer of at least {minimum}")
        if maximum is not None and self.value > maximum:
            raise self.wrong(f"an integer of at most {maximum:,}")
        return self.value

    def number(self, low: float, high: float) -> float:
        """Read a number."""
        if type(self.value) not in (int, float) or not low <= self.value <= high:  # NaN fails
            raise self.wrong(f"a number from {low:g} to {high:g}")
        return float(self.value)

    def boolean(self) -> bool:
        """Read a boolean."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def sha256(self) -> str:
        """Read a SHA-256 in lower-case hexadecimal."""
        if not _SHA256.fullmatch(self.text()):
            raise self.wrong("64 hexadecimal digits")
        return self.text()

    def file_name(self) -> str:
        """A name that stays inside the bundle on every system."""
        name = self.text()
        path = PurePosixPath(name)
        inside = (
            name == path.as_posix()
            and not path.is_absolute()
            and name != "."
            and ".." not in path.parts
            and not set(name) & set("\\:\0")
        )
        if not inside:
            raise self.wrong("a relative path inside the bundle")
        return name

    def one_of(self, enum: type[_T]) -> _T:
        """Read a member of an enumeration."""
        values = [str(member.value) for member in enum]  # type: ignore[attr-defined]
        if self.value not in values:
            raise self.wrong(" or ".join(values))
        return enum(self.value)  # type: ignore[call-arg]
