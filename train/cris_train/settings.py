"""Plain values, from YAML and the command line, to frozen dataclasses: by type, strictly."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cris_deploy.errors import InputError

T = TypeVar("T")


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file of keys and values and put overrides over it.

    Args:
        path: The file.
        overrides: `key=value` with the value in YAML; `model.word_len=22` reaches inside.

    Raises:
        InputError: no such file, not YAML, or an override of another form.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--config {path}: {reason}") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: expected keys and values")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise InputError(f"{override!r}: overrides have the form key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{override!r}: the value is not YAML") from error
        _assign(values, key, key, value)
    return values


def build(kind: type[T], values: Mapping[str, Any], where: str, prefix: str = "") -> T:
    """Make a dataclass of plain values; fields that are not given take their default.

    Args:
        kind: A dataclass whose fields are numbers, text, bool, enums, optional ones, tuples of
            these, or dataclasses of the same kind.
        values: Field -> plain value.
        where: Stands before every message.
        prefix: Path to these values, such as "model.".

    Raises:
        InputError: a key that does not exist (with the nearest that does), a value of another type
            or out of range.
    """
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise InputError(f"{where}: {_unknown(f'{prefix}{name}', kind, prefix)}")
    given = {
        name: _convert(hints[name], value, where, prefix + name) for name, value in values.items()
    }
    try:
        return kind(**given)
    except InputError as error:
        raise InputError(f"{where}: {prefix and f'in {prefix[:-1]}: '}{error}") from error
    except TypeError as error:  # a field without default is not there
        fields = dataclasses.fields(typing.cast(Any, kind))
        needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
        raise InputError(f"{where}: {prefix[:-1]} needs {', '.join(needed)}") from error


def plain(value: Any) -> Any:
    """The inverse of `build`: dicts, lists, numbers, text, bool and None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    return value.value if isinstance(value, Enum) else value


def differences(old: Any, new: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two results of `plain` differ: dotted name -> (old, new); absent is None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys([*old, *new]):
            inner = f"{name}.{key}" if name else str(key)
            found |= differences(old.get(key), new.get(key), inner)
        return found
    return {} if old == new else {name: (old, new)}


def _assign(values: dict[str, Any], key: str, whole: str, value: Any) -> None:
    head, _, rest = key.partition(".")
    if not rest:
        values[head] = value
        return
    if values.get(head) is None:
        values[head] = {}
    if not isinstance(values[head], dict):
        raise InputError(f"{whole}: {head} has no settings of its own")
    _assign(values[head], rest, whole, value)


def _unknown(name: str, kind: type[Any], prefix: str) -> str:
    hints = typing.get_type_hints(kind)
    known = [prefix + field for field in hints]
    for field, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            known += [f"{prefix}{field}.{inner}" for inner in typing.get_type_hints(hint)]
    leaf = name.rpartition(".")[2]
    near = [k for k in known if k.rpartition(".")[2] == leaf]
    near += difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(hints))}"
    return f"unknown setting {name}; {hint}"


def _convert(hint: Any, value: Any, where: str, name: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):  # X | None
        if value is None:
            return None
        (hint,) = (part for part in inner if part is not type(None))
        return _convert(hint, value, where, name)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}: {name} must be a list, not {value!r}")
        return tuple(_convert(inner[0], v, where, f"{name}[{i}]") for i, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: {name} must be keys and values, not {value!r}")
        return build(typing.cast(type[Any], hint), value, where, f"{name}.")
    if issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError as error:
            choices = ", ".join(str(member.value) for member in hint)
            raise InputError(f"{where}: {name} must be one of {choices}, not {value!r}") from error
    if hint is float:
        number = _number(value)
        if number is None or not math.isfinite(number):
            raise InputError(f"{where}: {name} must be a number, not {value!r}")
        return number
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        wanted = {int: "a whole number", bool: "true or false", str: "text"}[hint]
        raise InputError(f"{where}: {name} must be {wanted}, not {value!r}")
    return value


def _number(value: Any) -> float | None:
    """YAML reads 1e-3 (no dot) as text; people write it."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None
