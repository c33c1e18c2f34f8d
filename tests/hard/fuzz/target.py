"""What is fuzzed: one module for each reader, by name."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

CORPUS: Final = Path(__file__).parent / "corpus"
NAMES: Final = (
    "pictures",
    "words",
    "vocabularies",
    "manifests",
    "plans",
    "arrays",
    "references",
    "folders",
    "graphs",
    "checkpoints",
    "kernels",
    "requests",
    "inference",
)
Case: TypeAlias = Callable[[bytes], None]
"""Returns, or raises a CrisError; anything else is a finding."""


@dataclass(frozen=True, slots=True)
class Target:
    """A reader under test.

    Attributes:
        name: Its module in `targets/`, and its folder in `corpus/`.
        make: Gives the case's function, which may write below the folder it is given.
        reader: Modules whose branches the run should go through.
        others: Functions of these that do not read ("module:function"), and why not.
        longest: Bytes of a case.
    """

    name: str
    make: Callable[[Path], Case]
    reader: tuple[str, ...]
    others: dict[str, str]
    longest: int

    @property
    def corpus(self) -> list[bytes]:
        """The committed cases, in the order of their names."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())]


def find(name: str) -> Target:
    """Import a target; KeyError if there is none of that name."""
    if name not in NAMES:
        raise KeyError(f"no target {name!r}: {', '.join(NAMES)}")
    module = importlib.import_module(f"tests.hard.fuzz.targets.{name}")
    return Target(
        name,
        module.make,
        module.READER,
        getattr(module, "OTHERS", {}),
        getattr(module, "LONGEST", 4096),
    )
