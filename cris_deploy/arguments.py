"""Arguments of the public API: a wrong type or range is an InputError that says what to give."""

import math
import os
from numbers import Integral, Real
from pathlib import Path
from typing import Final

from cris_deploy.errors import InputError

MOST_THREADS: Final = 1024
"""More than any machine's cores; a runtime that is asked for a billion threads makes them."""


def whole(name: str, value: object, minimum: int, maximum: int | None = None) -> int:
    """Give an integer from `minimum` to `maximum`, also one of NumPy's; True is none."""
    return _whole(name, value, minimum, maximum, "")


def whole_or_none(
    name: str, value: object, minimum: int, maximum: int | None, none: str
) -> int | None:
    """Give an integer as `whole` does, or None, which stands for `none`."""
    return None if value is None else _whole(name, value, minimum, maximum, f", or None for {none}")


def flag(name: str, value: object) -> bool:
    """Give True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {shown(value)}: give True or False")
    return value


def fraction_or_none(name: str, value: object, none: str) -> float | None:
    """Give a number from 0 to 1, also one of NumPy's, or None, which stands for `none`."""
    if value is None:
        return None
    number = float(value) if isinstance(value, Real) else math.nan
    if isinstance(value, bool) or not 0 <= number <= 1:
        raise InputError(f"{name} is {shown(value)}: give 0 to 1, or None for {none}")
    return number


def path(name: str, value: object, remedy: str) -> Path:
    """Give a path from a string or a path; bytes are neither."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise InputError(f"{name} is {shown(value)}: {remedy}")
    return Path(value)


def shown(value: object) -> str:
    """Show a value in a message, and its type where the value does not tell."""
    found = repr(value)
    found = found if len(found) <= 60 else found[:57] + "..."
    plain = value is None or type(value) in (int, bool, float, str)
    return found if plain else f"{found} ({type(value).__name__})"


def _whole(name: str, value: object, minimum: int, maximum: int | None, others: str) -> int:
    # A bool is an int to Python, and here a mistake.
    fits = isinstance(value, Integral) and not isinstance(value, bool)
    if not fits or int(value) < minimum or (maximum is not None and int(value) > maximum):  # type: ignore[call-overload]
        bounds = f"at least {minimum}" if maximum is None else f"{minimum} to {maximum}"
        raise InputError(f"{name} is {shown(value)}: give a whole number, {bounds}{others}")
    return int(value)  # type: ignore[call-overload, no-any-return]
