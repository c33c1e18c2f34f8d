"""What cris-segment is asked to do: one image, a folder, or a JSONL file, as a list of jobs."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cris_deploy.errors import DataError, InputError
from cris_deploy.pixels.image import SUFFIXES

_LISTS = (".jsonl", ".ndjson")
_NAME_LENGTH = 120


@dataclass(frozen=True, slots=True)
class Job:
    """An image and its expressions; `name` is unique and starts the names of the outputs."""

    image: Path
    expressions: tuple[str, ...]
    name: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class BadEntry:
    """A line of a JSONL file that cannot be used, and why."""

    line: int
    problem: str


def read_jobs(source: Path, expressions: Sequence[str]) -> list[Job | BadEntry]:
    """Turn an image, a folder of images, or a JSONL file into jobs, in a stable order.

    Raises InputError if expressions are missing or superfluous, or a folder has no images.
    """
    if source.suffix.lower() in _LISTS and not source.is_dir():
        if expressions:
            raise InputError(f"EXPRESSION is given, but {source} has its own: drop one of them")
        return _read_list(source)
    if not expressions:
        raise InputError("EXPRESSION is missing: say what to find, such as 'the man in red'")
    images = _images_in(source) if source.is_dir() else [source]
    names = _Names()
    return [Job(image, tuple(expressions), names.unique(image)) for image in images]


def _images_in(folder: Path) -> list[Path]:
    images = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not images:
        raise InputError(f"IMAGE {folder} has no images in it ({' '.join(SUFFIXES)}): give another")
    return images


def _read_list(path: Path) -> list[Job | BadEntry]:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise InputError(f"IMAGE {path} cannot be read: {error.strerror}") from None
    names = _Names()
    jobs: list[Job | BadEntry] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            image, expressions = _read_entry(line)
        except DataError as error:
            jobs.append(BadEntry(number, str(error)))
        else:
            image_path = path.parent / image
            jobs.append(Job(image_path, expressions, names.unique(image_path), number))
    if not jobs:
        raise InputError(
            f"IMAGE {path} has no entries: give lines like "
            '{"image": "a.jpg", "expression": "..."}'
        )
    return jobs


def _read_entry(line: bytes) -> tuple[str, tuple[str, ...]]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise DataError('not an object: give {"image": ..., "expression": ...}')
    if not isinstance(entry.get("image"), str) or not entry["image"]:
        raise DataError('"image" is missing or not a path')
    if ("expression" in entry) == ("expressions" in entry):
        raise DataError('give either "expression" or "expressions"')
    found = [entry["expression"]] if "expression" in entry else entry["expressions"]
    if not isinstance(found, list) or not found or not all(isinstance(e, str) for e in found):
        raise DataError('"expressions" is not a list of strings, or "expression" not a string')
    return entry["image"], tuple(found)


class _Names:
    """Output names from image names; the second a.jpg becomes a-2."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def unique(self, image: Path) -> str:
        stem = image.stem[:_NAME_LENGTH] or "image"
        for name in _candidates(stem):
            # Compared without case, for file systems that do so.
            if name.casefold() not in self._used:
                self._used.add(name.casefold())
                return name
        raise AssertionError("unreachable: the candidates do not end")


def _candidates(stem: str) -> Iterable[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}-{number}"
        number += 1
