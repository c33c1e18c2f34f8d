"""Documents, read strictly: JSON and plain values to frozen dataclasses, and back, by msgspec.

The annotations of a dataclass are its schema; bounds stand in them as `Annotated[int, Meta(ge=1)]`.
What they cannot say a `__post_init__` checks, with a ValueError. An error names the document, the
place in it, what is there and what was expected, and is of the type that the caller asks for.
"""

import dataclasses
import difflib
import enum
import functools
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from cris_deploy.errors import BundleError, CrisError, InputError

_T = TypeVar("_T")

Sha256: TypeAlias = Annotated[
    str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="64 hexadecimal digits")
]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Positive: TypeAlias = Annotated[int, Meta(ge=1)]

_MOST_SHOWN: Final = 60
_UNIONS: Final = (typing.Union, types.UnionType)
_LEAVES: Final = frozenset({str, int, float, bool, type(None)})
_STEP: Final = re.compile(r"\[[^]]*\]|[^.\[\]]+")
_NAMES: Final = {
    "object": "an object",
    "array": "a list",
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "null": "null",
}


def read(
    kind: type[_T],
    text: str | bytes,
    where: str,
    *,
    newest: int | None = None,
    remedy: str = "",
    error: type[CrisError] = BundleError,
    known_only: bool = False,
) -> _T:
    """Read a JSON document.

    Args:
        kind: A dataclass whose annotations say what is valid.
        text: The document.
        where: Its name, for messages.
        newest: The newest `format` that this version reads, and the document must say which it has;
            None where a document has none.
        remedy: Ends every message; a newer format's has it beside the upgrade.
        error: What is raised.
        known_only: Refuse fields that `kind` does not have, which are ignored otherwise.

    Raises:
        error: not JSON, of a newer format, or not what `kind` says.
    """
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as failure:
        raise error(_ended(f"{where} is not valid JSON ({failure})", remedy)) from None
    if newest is not None and isinstance(value, dict):
        if "format" not in value:
            raise error(_ended(f"{where}: format is missing", remedy))
        version = value["format"]
        if isinstance(version, int) and version > newest:
            raise error(
                f"{where} has format {version}, this cris-deploy reads up to {newest}: "
                "upgrade cris-deploy (pip install -U cris-deploy)"
                + (f", or {remedy}" if remedy else "")
            )
    return convert(kind, value, where, remedy=remedy, error=error, known_only=known_only)


def convert(
    kind: type[_T],
    value: object,
    where: str,
    *,
    remedy: str = "",
    error: type[CrisError] = InputError,
    known_only: bool = True,
) -> _T:
    """Give plain values (dicts, lists, numbers, text) as `kind`; the rest as for `read`."""
    if known_only:
        for place, name, known in _unknown(kind, value, ""):
            near = [inner for inner in known if inner.endswith(f".{name}")]
            near += difflib.get_close_matches(name, known, n=1)
            here = sorted(inner for inner in known if "." not in inner)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(here)}"
            raise error(_ended(f"{where}: {place} is not known; {hint}", remedy))
    try:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as failure:
            problem = _explain(kind, value, str(failure))
        raise error(_ended(f"{where}: {problem}", remedy))
    except RecursionError:  # of the reading, or of the explaining
        raise error(_ended(f"{where} is nested too deep", remedy)) from None
    except UnicodeEncodeError:  # a half of a surrogate pair, which a pickle may have for text
        raise error(_ended(f"{where} has text that is no Unicode", remedy)) from None


def to_json(value: object) -> str:
    """Write a document, indented, fields in their order; a number that is not finite is null."""
    text: bytes = msgspec.json.format(msgspec.json.encode(plain(value), enc_hook=_native), indent=2)
    return text.decode() + "\n"


def plain(value: object) -> Any:
    """Give dataclasses, enumerations and tuples as dicts, text, numbers and lists."""
    if type(value) in _LEAVES:
        return value
    # msgspec's own way leaves tuples, and leaves out what `convert` left at a class's default.
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {plain(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value.value if isinstance(value, enum.Enum) else value


def _native(value: object) -> float:
    if isinstance(value, float):  # NumPy's float64 is one
        return float(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be written as JSON")


def _ended(sentence: str, remedy: str) -> str:
    return f"{sentence}: {remedy}" if remedy else sentence


def _explain(kind: Any, value: Any, message: str) -> str:
    """msgspec's message with keys by their names, and with what is there."""
    problem, _, path = message.partition(" - at `")
    of_a_key = path.startswith("key` in `")
    steps = _STEP.findall(path.removeprefix("key` in `").removeprefix("$").rstrip("`"))
    at = _locate(_At(kind, value, ""), steps)
    if problem.startswith("Object missing required field `"):
        name = problem.split("`")[1]
        return f"{at.place}.{name} is missing".lstrip(".")
    place = at.place or "the document"
    if of_a_key:
        inner = typing.get_args(_bare(at.kind))[0]
        wrong = next((key for key in at.value if not _fits(inner, key)), None)
        return f"{place} has {_shown(wrong)}, expected {_expected(inner, problem)}"
    expected = _expected(at.kind, problem)
    if expected is None or at.vague:
        return f"{at.place}: {problem}".removeprefix(": ")
    return f"{place} is {_shown(at.value)}, expected {expected}"


@dataclasses.dataclass(frozen=True)
class _At:
    """A place in a document, its type and value; `vague` if it is only near to what is meant."""

    kind: Any
    value: Any
    place: str
    vague: bool = False


def _locate(at: _At, steps: list[str]) -> _At:
    """Follow msgspec's path; where it says only "some entry", find the first that is wrong."""
    for number, step in enumerate(steps):
        kind = _bare(at.kind)
        if step == "[...]":
            inner = typing.get_args(kind)[-1]
            for key, entry in at.value.items():
                if not _fits(inner, entry):
                    return _locate(_At(inner, entry, f"{at.place}[{key!r}]"), steps[number + 1 :])
            return dataclasses.replace(at, vague=True)
        if step.startswith("["):
            inner, entry = typing.get_args(kind)[0], at.value[int(step[1:-1])]
            at = _At(inner, entry, at.place + step)
        else:
            inner = _hints(kind)[step]
            at = _At(inner, at.value[step], f"{at.place}.{step}" if at.place else step)
    return at


def _fits(kind: Any, value: object) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _expected(kind: Any, problem: str) -> str | None:
    """What is valid there, in words; None if the problem is a sentence of a `__post_init__`."""
    for meta in getattr(kind, "__metadata__", ()):
        if meta.description:
            return str(meta.description)
    bare = _bare(kind)
    if isinstance(bare, type) and issubclass(bare, enum.Enum):
        return " or ".join(str(member.value) for member in bare)
    if not problem.startswith("Expected `"):
        return None
    expected = problem.removeprefix("Expected ").partition(", got ")[0].replace("`", "")
    words = (part.partition(" ") for part in expected.split(" | "))
    return " or ".join(f"{_NAMES.get(word, word)}{space}{rest}" for word, space, rest in words)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


def _unknown(kind: Any, value: Any, place: str) -> Iterator[tuple[str, str, list[str]]]:
    """Fields that no dataclass has: their place, their name, and those that there are, in it
    and (dotted) inside these.
    """
    if value is None or isinstance(value, (str, int, float)):
        return
    kind = _bare(kind)
    arguments = typing.get_args(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        hints = _hints(kind)
        for name, entry in value.items():
            inner = f"{place}.{name}" if place else str(name)
            if name not in hints:
                yield inner, str(name), list(_fields(kind))
            else:
                yield from _unknown(hints[name], entry, inner)
    elif isinstance(value, Mapping) and len(arguments) == 2:
        for name, entry in value.items():
            yield from _unknown(arguments[1], entry, f"{place}[{name!r}]")
    elif isinstance(value, (list, tuple)) and arguments:
        for index, entry in enumerate(value):
            yield from _unknown(arguments[0], entry, f"{place}[{index}]")


def _fields(kind: Any) -> Iterator[str]:
    """Names of a dataclass's fields; after each that is a dataclass, its own, dotted."""
    for name, hint in _hints(kind).items():
        yield name
        if dataclasses.is_dataclass(_bare(hint)):
            yield from (f"{name}.{inner}" for inner in _fields(_bare(hint)))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """Types of a dataclass's fields; to evaluate them costs more than to read a document."""
    return typing.get_type_hints(kind, include_extras=True)


def _bare(kind: Any) -> Any:
    """The X of `X | None` and of `Annotated[X, ...]`."""
    while True:
        parts = [part for part in typing.get_args(kind) if part is not type(None)]
        origin = typing.get_origin(kind)
        if origin is Annotated or (origin in _UNIONS and len(parts) == 1):
            kind = parts[0]
        else:
            return kind
