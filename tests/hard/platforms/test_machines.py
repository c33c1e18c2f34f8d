"""The kernels on other processors: 64-bit ARM, and x86 without AVX2.

Compiled as CMakeLists.txt compiles them, without Python, and run by qemu where this is another
machine. What has a fused multiply-add gives the same bits everywhere (kernels/README.md).
"""

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).parents[3]
KERNELS = ROOT / "kernels"
HERE = Path(__file__).parent

FLAGS = ("-O3", "-DNDEBUG", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion")
SETS = {"strip_avx2.cpp": ("-march=x86-64-v3",), "strip_avx512.cpp": ("-march=x86-64-v4",)}
EVERYWHERE = ("mask.cpp", "rle.cpp", "threads.cpp", "strip_portable.cpp")
THRESHOLD = np.float32(0.35)
# Neither has AVX, the first not even SSSE3; both are older than any machine that runs the wheels
# of NumPy, which want x86-64-v2.
OLD = ("qemu64,-avx,-avx2,-fma", "Nehalem")


@dataclass(frozen=True)
class Machine:
    """A compiler's machine, and what runs its programs here."""

    name: str
    compiler: str
    sources: tuple[str, ...]
    runner: tuple[str, ...] = ()

    def build(self, folder: Path) -> Path:
        """Compile everything with the warnings of CMakeLists.txt, as errors."""
        objects = []
        for name in self.sources:
            objects.append(folder / f"{self.name}-{name}.o")
            self._compile(KERNELS / "cpu" / name, *SETS.get(name, ()), "-c", "-o", objects[-1])
        program = folder / f"{self.name}-mask"
        self._compile(HERE / "mask.cpp", *objects, "-pthread", "-static", "-o", program)
        return program

    def build_letterbox(self, folder: Path, *flags: str) -> Path:
        program = folder / f"{self.name}-letterbox"
        self._compile(HERE / "letterbox.cpp", *flags, "-static", "-o", program)
        return program

    def _compile(self, *words: object) -> None:
        command = [self.compiler, "-std=c++17", *FLAGS, *WARNINGS, "-Werror", f"-I{KERNELS}"]
        done = subprocess.run(
            [*command, *map(str, words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def run(self, program: Path, *words: object, by: Iterable[str] | None = None) -> int:
        runner = self.runner if by is None else by
        command = [*runner, str(program), *map(str, words)]
        return subprocess.run(command, capture_output=True, check=False, timeout=120).returncode


X86 = Machine("x86", "g++", (*EVERYWHERE, *SETS))
ARM = Machine("arm64", "aarch64-linux-gnu-g++", EVERYWHERE, ("qemu-aarch64",))


def needed(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (docs/platforms.md)")


@dataclass(frozen=True)
class Outcome:
    """What the program wrote: probabilities (float32), and the bytes of what follows from them."""

    values: NDArray[np.float32]
    decisions: bytes


def outcome(machine: Machine, program: Path, name: str, by: Iterable[str] | None = None) -> Outcome:
    files = [program.with_suffix(f".{name}.{kind}") for kind in ("values", "decisions")]
    code = machine.run(program, name, *files, by=by)
    if code == 3 and by is None:
        pytest.skip(f"this machine has no {name}")
    assert code == 0, f"exit code {code}"
    return Outcome(np.fromfile(files[0], np.float32), files[1].read_bytes())


@pytest.fixture(scope="module")
def x86(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed("g++")
    return X86.build(tmp_path_factory.mktemp("x86"))


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed(ARM.compiler, *ARM.runner)
    return ARM.build(tmp_path_factory.mktemp("arm"))


def test_flags_are_those_of_the_build() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    for flag in (*FLAGS, *WARNINGS, *(flag for flags in SETS.values() for flag in flags)):
        assert flag in text, flag
    compiled = set(re.findall(r"kernels/cpu/(\w+\.cpp)", text))
    assert compiled == {*EVERYWHERE, *SETS}


@pytest.mark.parametrize("name", ["avx2", "avx512"])
def test_arm64_gives_the_bits_of_x86(x86: Path, arm: Path, name: str) -> None:
    expected, found = outcome(X86, x86, name), outcome(ARM, arm, "portable")
    assert expected.values.size > 2_000_000
    np.testing.assert_array_equal(found.values.view(np.uint32), expected.values.view(np.uint32))
    assert found.decisions == expected.decisions


def test_arm64_letterboxes_to_the_bits_of_x86(tmp_path: Path) -> None:
    needed("g++", ARM.compiler, *ARM.runner)
    found = {}
    for machine, flags in ((X86, ("-march=x86-64-v3",)), (ARM, ())):
        program = machine.build_letterbox(tmp_path, *flags)
        assert machine.run(program, tmp_path / machine.name) == 0
        found[machine] = (tmp_path / machine.name).read_bytes()
    assert len(found[X86]) == 224 * 224 * 3 * 4
    assert found[ARM] == found[X86]


def test_arm64_computes_in_neon(arm: Path) -> None:
    """The loops over columns become fused multiply-adds of four numbers at once."""
    needed("aarch64-linux-gnu-objdump")
    code = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", arm.with_name("arm64-strip_portable.cpp.o")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for loop in ("vertical", "horizontal"):
        bodies = re.findall(rf"^\w+ <\w*{loop}\w*>:\n((?:.+\n)+)", code, re.MULTILINE)
        assert bodies, loop
        assert any(re.search(r"\bfmla\s+v\d+\.4s", body) for body in bodies), loop


def close(found: Outcome, expected: Outcome) -> None:
    """Values agree to their last bits, and pixels wherever the value decides them."""
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-6)
    differ = (found.values > THRESHOLD) != (expected.values > THRESHOLD)
    assert (np.abs(expected.values[differ] - THRESHOLD) < 1e-6).all()


def test_the_portable_path_agrees_with_the_fast_one(x86: Path) -> None:
    found = outcome(X86, x86, "portable")
    close(found, outcome(X86, x86, "avx2"))


@pytest.mark.parametrize("cpu", OLD)
def test_a_processor_without_avx2_takes_the_portable_path(x86: Path, cpu: str) -> None:
    needed("qemu-x86_64")
    by = ("qemu-x86_64", "-cpu", cpu)
    for name in ("avx2", "avx512"):
        assert X86.run(x86, name, "/dev/null", "/dev/null", by=by) == 3
    found = outcome(X86, x86, "portable", by)
    expected = outcome(X86, x86, "portable")
    np.testing.assert_array_equal(found.values.view(np.uint32), expected.values.view(np.uint32))
    assert found.decisions == expected.decisions
