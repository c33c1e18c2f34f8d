"""Frozen dataclasses as JSON documents, and back: strictly, field by field, from their annotations.

Enough for records: numbers, strings, enumerations, tuples, mappings from str, `X | None`, and
dataclasses of these. A dataclass may check itself with `positive` and `times`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final

from cris_deploy.errors import InputError

_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain(value: Any) -> Any:
    """Values as json.dumps takes them; a number that is not finite as a string, "NaN" say."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value.value if isinstance(value, Enum) else value


def read(kind: Any, value: Any, where: str) -> Any:
    """Give the value as the annotated type.

    Args:
        kind: A type of those above.
        value: What json.loads gave.
        where: Its place in the document, for messages; "" for the document.

    Raises:
        InputError: it is something else; names the place.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # X | None is the only union here
        return None if value is None else read(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        return tuple(read(arguments[0], e, f"{where}[{i}]") for i, e in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _wrong(where, value, "an object")
        return {key: read(arguments[1], e, f"{where}.{key}") for key, e in value.items()}
    if dataclasses.is_dataclass(kind):
        return _read_object(kind, value, where)
    if issubclass(kind, Enum):
        members = [member.value for member in kind]
        if value not in members:
            raise _wrong(where, value, f"one of {', '.join(members)}")
        return kind(value)
    if kind is float:
        if isinstance(value, str) and value in _NOT_FINITE:
            return _NOT_FINITE[value]
        if type(value) in (int, float):
            return float(value)
        raise _wrong(where, value, "a number")
    if type(value) is not kind:  # a bool is no number of anything
        raise _wrong(where, value, {int: "an integer", str: "a string"}.get(kind, str(kind)))
    return value


def _read_object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    hints, prefix = typing.get_type_hints(kind), f"{where}." if where else ""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise InputError(f"{prefix}{name} is not a field that this version knows")
    for name, field in fields.items():
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if name not in value and not optional:
            raise InputError(f"{prefix}{name} is missing")
    given = {name: read(hints[name], entry, f"{prefix}{name}") for name, entry in value.items()}
    try:
        return kind(**given)
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from error


def _wrong(where: str, value: Any, expected: str) -> InputError:
    found = json.dumps(value, ensure_ascii=False)
    found = found if len(found) <= 60 else found[:57] + "..."
    return InputError(f"{where} is {found}, expected {expected}")


def positive(**numbers: float) -> None:
    """Raise an InputError that names the first number which is not finite and above 0."""
    for name, number in numbers.items():
        if not 0 < number < math.inf:
            raise InputError(f"{name} is {number}, expected more than 0")


def times(name: str, values: Sequence[float], *, signed: bool = False) -> None:
    """Raise an InputError unless there are times, finite and, if not signed, above 0."""
    if not values:
        raise InputError(f"{name} is empty, expected a time of every pass")
    for value in values:
        if not math.isfinite(value) or (value <= 0 and not signed):
            raise InputError(f"{name} has {value}, expected finite times above 0")
