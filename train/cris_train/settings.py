"""Recipes as plain values: YAML with `key=value` put over it, and where two recipes differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from cris_deploy.errors import InputError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-3, which has no dot, for text; people write it, and 1.2 reads a number."""


_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_values(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file of keys and values and put overrides over it.

    Args:
        path: The file.
        overrides: `key=value` with the value in YAML; `model.word_len=22` reaches inside.

    Raises:
        InputError: no such file, not YAML, or an override of another form.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
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
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise InputError(f"{override!r}: the value is not YAML") from error
        _assign(values, key, override, value)
    return values


def differences(old: Any, new: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two recipes of plain values differ: dotted name -> (old, new); absent is None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in dict.fromkeys([*old, *new]):
            inner = f"{name}.{key}" if name else str(key)
            found |= differences(old.get(key), new.get(key), inner)
        return found
    return {} if old == new else {name: (old, new)}


def _assign(values: dict[str, Any], key: str, override: str, value: Any) -> None:
    head, _, rest = key.partition(".")
    if not rest:
        values[head] = value
        return
    if values.get(head) is None:
        values[head] = {}
    if not isinstance(values[head], dict):
        raise InputError(f"{override!r}: {head} has no settings of its own")
    _assign(values[head], rest, override, value)
