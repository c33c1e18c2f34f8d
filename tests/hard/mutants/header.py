"""Mutants of the kernels' shared header, against the kernels' tests.

    python -m tests.hard.mutants.header --record tests/hard/records/mutants.json

The mutant is in the portable build of the inner loops, the plans and the letterbox; the builds with
AVX stay as they are. A mutant that the compiler turns into the same code is none.
"""

import importlib.machinery
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pybind11

from tests.hard.mutants import kept
from tests.hard.mutants.kept import ROOT, tested

KERNELS: Final = ROOT / "kernels"
HEADER: Final = KERNELS / "filter.h"
FOLDER: Final = ROOT / "build/mutants"
TESTS: Final = (
    "tests/kernels/test_kernels_mask.py",
    "tests/kernels/test_kernels_reference.py",
    "tests/kernels/test_kernels_arguments.py",
)
SOURCES: Final = {
    "cpu/strip_portable.cpp": (),
    "cpu/strip_avx2.cpp": ("-march=x86-64-v3",),
    "cpu/strip_avx512.cpp": ("-march=x86-64-v4",),
    "cpu/mask.cpp": (),
    "cpu/rle.cpp": (),
    "cpu/threads.cpp": (),
    "bindings/arguments.cpp": (),
    "bindings/module.cpp": (),
    "bindings/cpu.cpp": (),
}
FLAGS: Final = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off")
PAIRS: Final = (
    *((" + ", " - "), (" - ", " + "), (" * ", " / "), (" / ", " * "), (" && ", " || ")),
    *((" || ", " && "), (" == ", " != "), (" < ", " <= "), (" > ", " >= "), (" <= ", " < ")),
    *((" >= ", " > "), (" << ", " >> "), (" >> ", " << "), (" & ", " | "), (" | ", " & ")),
    *((" |= ", " &= "), ("*= ", "/= "), ("(-", "("), (", -", ", "), (" ? ", " ? !!"), ("!(", "(")),
    *((" < ", " > "), (" > ", " < "), ("continue;", "break;"), ("++", "--")),
)
LARGE: Final = ("numpy", "cv2", "torch", "pytest", "hypothesis", "pycocotools.mask", "onnx")
NUMBER: Final = re.compile(r"(?<![\w.])(0x[0-9a-fA-F]+u?|\d+\.\d+(?:e[+-]?\d+)?f?|\d+)(?![\w.])")


def changed_lines(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, what was done, and the whole text; comments and directives are left alone."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        code, _, comment = line.partition("//")
        if not code.strip() or code.lstrip().startswith(("#", "template")):
            continue
        for old, new in PAIRS:
            for found in re.finditer(re.escape(old), code):
                other = code[: found.start()] + new + code[found.end() :]
                yield at + 1, f"{old.strip()} -> {new.strip()}", _joined(lines, at, other, comment)
        for found in NUMBER.finditer(code):
            for what in _numbers(found[1]):
                other = code[: found.start()] + what + code[found.end() :]
                yield at + 1, f"{found[1]} -> {what}", _joined(lines, at, other, comment)


def _joined(lines: list[str], at: int, code: str, comment: str) -> str:
    return "\n".join([*lines[:at], code + ("//" + comment if comment else ""), *lines[at + 1 :]])


def _numbers(number: str) -> list[str]:
    if number.startswith("0x"):
        return [hex(int(number.rstrip("u"), 16) ^ 1) + "u"]
    if "." in number:
        tail = "f" if number.endswith("f") else ""
        value = float(number.rstrip("f"))
        return [f"{value * 1.01 if value else 0.01!r}{tail}"]
    return [str(int(number) + 1)]


def command(source: str, include: Path | None) -> list[str]:
    """How a source is compiled, with the mutant's header if `include` has one."""
    flags = [*FLAGS, *SOURCES[source], '-DCRIS_CUDA_ARCHITECTURES=""']
    flags += [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    place = KERNELS if include is None else include
    return ["g++", *flags, "-c", str(place / source)]


def tree(folder: Path, header: str) -> None:
    """The kernels' sources beside a mutant: includes are relative."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("cpu", "bindings"):
        shutil.copytree(KERNELS / part, folder / part)
    shutil.copy(KERNELS / "mask.h", folder)
    (folder / "filter.h").write_text(header)


def main(argv: list[str] | None = None) -> None:
    kept.main("header", __doc__, argv, _mutants, LARGE)


def _mutants() -> Iterator[tuple[str, Callable[[], str]]]:
    text = HEADER.read_text()
    original = FOLDER / "original"
    tree(original, text)
    for source in SOURCES:
        _compile(source, original)
    letterbox = text[: text.index("// --- letterbox")].count("\n")
    lines = text.splitlines()
    for line, what, changed in changed_lines(text):
        parts = ["bindings/cpu.cpp"]
        if line <= letterbox:
            parts = ["cpu/mask.cpp", "cpu/strip_portable.cpp"]
        name = f"filter.h:{line}: {what}: {lines[line - 1].strip()}"
        yield name, _trial(changed, parts, original)


def _compile(source: str, folder: Path) -> Path:
    out = folder / f"{source.replace('/', '.')}.o"
    subprocess.run([*command(source, folder), "-o", str(out)], check=True, capture_output=True)
    return out


def _trial(header: str, parts: list[str], original: Path) -> Callable[[], str]:
    def trial() -> str:
        folder = FOLDER / "mutant"
        tree(folder, header)
        objects = {source: original / f"{source.replace('/', '.')}.o" for source in SOURCES}
        same = True
        for source in parts:
            try:
                mutant = _compile(source, folder)
            except subprocess.CalledProcessError:
                return "no build"
            same = same and _code(mutant) == _code(objects[source])
            objects[source] = mutant
        if same:
            return "same code"
        library = folder / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
        link = ["g++", "-shared", *map(str, objects.values()), "-pthread", "-o", str(library)]
        subprocess.run(link, check=True, capture_output=True)
        return tested(lambda: _install(library), TESTS)

    return trial


def _code(file: Path) -> bytes:
    """What a file of machine code holds, without the names of the files it was made of."""
    stripped = file.with_suffix(".stripped")
    subprocess.run(["objcopy", "--strip-all", str(file), str(stripped)], check=True)
    return stripped.read_bytes()


def _install(library: Path) -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            if name != "cris_deploy._kernels":
                return None
            loader = importlib.machinery.ExtensionFileLoader(name, str(library))
            return importlib.util.spec_from_file_location(name, library, loader=loader)

    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
