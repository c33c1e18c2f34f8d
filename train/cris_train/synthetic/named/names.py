"""What the things of named scenes are called: `names.txt`, read and checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from cris_deploy.errors import DataError

NAMES_FILE = Path(__file__).with_name("names.txt")
TUXPAINT_FILE = Path(__file__).with_name("tuxpaint.txt")


@dataclass(frozen=True)
class Thing:
    """One name's line.

    Attributes:
        codes: Code points of its pictures, hexadecimal as their files are named; of Tux Paint's,
            files below the cache.
        names: What it is called, the usual name first.
        broader: Other words that are true of it, such as "car" of a taxi and "vehicle".
        section: The name of its section: the first word in the bracket.
        painted: Whether it comes in any colour, so that it may be repainted.
    """

    codes: tuple[str, ...]
    names: tuple[str, ...]
    broader: tuple[str, ...]
    section: str
    painted: bool

    @property
    def name(self) -> str:
        """The usual name."""
        return self.names[0]

    @property
    def words(self) -> frozenset[str]:
        """All words that are true of it."""
        return frozenset((*self.names, *self.broader))


@cache
def things() -> tuple[Thing, ...]:
    """All of `names.txt`, in its order.

    Raises:
        DataError: a line is unusable, or a picture or usual name is there twice.
    """
    found: list[Thing] = []
    words: tuple[str, ...] = ()
    section, painted = "", False
    text = NAMES_FILE.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            inside, _, star = line[1:].partition("]")
            words, painted = _listed(inside), star.strip() == "*"
            section = words[0].removeprefix("-") if words else ""
            words = tuple(word for word in words if not word.startswith("-"))
            continue
        codes, equals, said = line.partition(" = ")
        names, _, more = said.partition(" + ")
        if not equals or not section:
            raise DataError(f"{NAMES_FILE.name} line {number}: write [section], then codes = names")
        # A name that is its section's word as well ("drum" + drum) stands once.
        broader = tuple(word for word in (*_listed(more), *words) if word not in _listed(names))
        found.append(Thing(tuple(codes.split()), _listed(names), broader, section, painted))
    for what in ([c for thing in found for c in thing.codes], [thing.name for thing in found]):
        twice = {entry for entry in what if what.count(entry) > 1}
        if twice:
            raise DataError(f"{NAMES_FILE.name}: there twice: {', '.join(sorted(twice))}")
    return tuple(found)


def photographed(folder: str) -> tuple[Thing, ...]:
    """The same things in the same order, with Tux Paint's pictures in `folder`, or with none.

    Raises:
        DataError: `tuxpaint.txt` has a name that `names.txt` has not.
    """
    lines = TUXPAINT_FILE.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(" = ") for line in lines if line and not line.startswith("#"))
    files = {name: tuple(f"{folder}/{file}.png" for file in said.split()) for name, said in pairs}
    unknown = files.keys() - {thing.name for thing in things()}
    if unknown:
        raise DataError(f"{TUXPAINT_FILE.name}: not in names.txt: {', '.join(sorted(unknown))}")
    return tuple(replace(t, codes=files.get(t.name, ()), painted=False) for t in things())


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
