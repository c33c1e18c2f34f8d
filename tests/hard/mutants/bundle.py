"""Mutants of what reads a bundle, against the tests of that room.

    python -m tests.hard.mutants.bundle --record tests/hard/records/mutants.json

Each runs in a fork of a process that has imported what is large and not ours.
"""

import argparse
import importlib
import importlib.abc
import importlib.machinery
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.hard.mutants.changes import Mutant, mutants
from tests.hard.mutants.kept import ROOT, run, tested

MODULES: Final = (
    *("arrays", "contents", "external_data", "fingerprints", "manifest", "protobuf", "reading"),
    *("plans.choice", "plans.listing", "plans.record", "plans.sidecars"),
)
TESTS: Final = ("tests/deploy/bundle", "tests/deploy/proof/test_weights.py")
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
    parser = argparse.ArgumentParser(
        prog="python -m tests.hard.mutants.bundle", description=__doc__
    )
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--most", type=int)
    parser.add_argument("--pause", type=Path)
    parser.add_argument("--again", action="store_true", help="those that survived, too")
    asked = parser.parse_args(argv)
    found: dict[str, Callable[[], str]] = {}
    for module in MODULES:
        source = (ROOT / f"cris_deploy/bundle/{module.replace('.', '/')}.py").read_text()
        lines = source.splitlines()
        for mutant in mutants(source):
            name = f"{module}:{mutant.line}: {mutant.what}: {lines[mutant.line - 1].strip()}"
            while name in found:
                name += " (again)"
            found[name] = _trial(f"cris_deploy.bundle.{module}", mutant)
    for large in LARGE:
        importlib.import_module(large)
    ours = [name for name in sys.modules if name.startswith(("cris_", "tests.helpers"))]
    for name in ours:  # they are to be imported again, with the mutant among them
        del sys.modules[name]
    names = list(found)
    random.Random(0).shuffle(names)  # so that a part of them says something of all
    run(
        asked.record,
        "bundle",
        {name: found[name] for name in names},
        most=asked.most,
        pause=asked.pause,
        again=asked.again,
    )


def _trial(module: str, mutant: Mutant) -> Callable[[], str]:
    def install() -> None:
        sys.meta_path.insert(0, Changed(module, mutant.text))

    return lambda: tested(install, TESTS)


if __name__ == "__main__":
    main()
