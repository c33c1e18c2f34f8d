"""Mutants of what reads a bundle, against the tests of that room.

    python -m tests.hard.mutants.bundle --record tests/hard/records/mutants.json

Each runs in a fork of a process that has imported what is large and not ours.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator
from typing import Final

from tests.hard.mutants import kept
from tests.hard.mutants.changes import Mutant, mutants
from tests.hard.mutants.kept import ROOT, tested

MODULES: Final = (
    *("arrays", "contents", "external_data", "fingerprints", "manifest", "protobuf", "reading"),
    *("plans.choice", "plans.listing", "plans.record", "plans.sidecars"),
)
TESTS: Final = (
    *("tests/deploy/bundle", "tests/deploy/proof/test_weights.py"),
    "tests/hard/trust/test_signatures.py",
)
LARGE: Final = (
    *("numpy", "cv2", "PIL.Image", "onnx", "onnxruntime", "tokenizers", "msgspec", "pytest"),
    *("hypothesis", "hypothesis.strategies", "ftfy", "regex", "cuda.bindings", "tqdm", "torch"),
)


class Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from other text."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text

    def find_spec(
        self, name: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._name:
            return None
        origin = str(ROOT / f"{name.replace('.', '/')}.py")
        return importlib.machinery.ModuleSpec(name, self, origin=origin)

    def exec_module(self, module: object) -> None:
        exec(compile(self._text, "mutant", "exec"), vars(module))


def main(argv: list[str] | None = None) -> None:
    kept.main("bundle", __doc__, argv, _mutants, LARGE)


def _mutants() -> Iterator[tuple[str, Callable[[], str]]]:
    for module in MODULES:
        source = (ROOT / f"cris_deploy/bundle/{module.replace('.', '/')}.py").read_text()
        lines = source.splitlines()
        for mutant in mutants(source):
            name = f"{module}:{mutant.line}: {mutant.what}: {lines[mutant.line - 1].strip()}"
            yield name, _trial(f"cris_deploy.bundle.{module}", mutant)


def _trial(module: str, mutant: Mutant) -> Callable[[], str]:
    def install() -> None:
        sys.meta_path.insert(0, Changed(module, mutant.text))

    return lambda: tested(install, TESTS)


if __name__ == "__main__":
    main()
