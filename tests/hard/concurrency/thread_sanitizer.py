"""`python -m tests.hard.concurrency.thread_sanitizer SECONDS`: the kernels' threads."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
FLAGS = (
    *("-std=c++17", "-O1", "-g", "-fsanitize=thread", "-Wall", "-Wextra", "-Werror"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-pthread"),
)
STRIPS = {"portable": (), "avx2": ("-march=x86-64-v3",), "avx512": ("-march=x86-64-v4",)}


def build(folder: Path, main: Path = HERE / "kernels.cpp") -> Path:
    """Compile the kernels with a main program; CalledProcessError if that fails."""
    compiler = shutil.which("g++") or shutil.which("c++")
    assert compiler is not None, "a C++ compiler is needed: apt-get install g++"
    cpu = ROOT / "kernels/cpu"
    objects = []
    sources = [(main, ()), *((cpu / f"{name}.cpp", ()) for name in ("mask", "rle", "threads"))]
    sources += [(cpu / f"strip_{name}.cpp", flags) for name, flags in STRIPS.items()]
    for source, flags in sources:
        objects.append(str(folder / f"{source.stem}.o"))
        command = [compiler, *FLAGS, *flags, f"-I{ROOT}", "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, check=True, capture_output=True, text=True)
    program = folder / "kernels"
    subprocess.run([compiler, *FLAGS, *objects, "-o", str(program)], check=True)
    return program


def run(program: Path, seconds: float) -> "subprocess.CompletedProcess[str]":
    """Run it; a race is told on stderr, and the exit status is then 66."""
    return subprocess.run(
        [str(program), str(seconds)], capture_output=True, text=True, check=False, timeout=600
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="tsan-") as name:
        done = run(build(Path(name)), float(sys.argv[1]))
        print(done.stdout, done.stderr)
        sys.exit(done.returncode)
