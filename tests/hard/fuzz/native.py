"""The kernels' fuzzer in C++: built with sanitizers, run for so many cases.

python -m tests.hard.fuzz.native --cases 1000000 --record FILE
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from cris_deploy.files import write_whole

ROOT: Final = Path(__file__).parents[3]
KERNELS: Final = ROOT / "kernels"
HARNESS: Final = Path(__file__).parent / "cpp/kernels.cpp"
FOLDER: Final = ROOT / "build/fuzz/native"
FLAGS: Final = ("-std=c++20", "-ffp-contract=off", "-fno-omit-frame-pointer")
SETS: Final = {"avx2": "-march=x86-64-v3", "avx512": "-march=x86-64-v4"}


def build(compiler: str, folder: Path, *, cases: int | None = None) -> Path:
    """Compile the harness with AddressSanitizer and UBSan.

    Args:
        compiler: clang++ for libFuzzer, or any for `cases`.
        folder: Where the program goes.
        cases: That it runs by chance; None for libFuzzer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clang = "clang" in Path(compiler).name
    sanitizers = "address,undefined" + (",float-cast-overflow" if clang else "")
    flags = [*FLAGS, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-pthread"]
    flags.append(f"-I{HARNESS.parent}")  # a stand-in for pybind11's headers
    flags += ["-O1", "-g", "-fsanitize=fuzzer-no-link"] if cases is None else [f"-DCASES={cases}"]
    sources = [
        HARNESS,
        KERNELS / "bindings/arguments.cpp",
        *sorted((KERNELS / "cpu").glob("*.cpp")),
    ]

    def compiled(source: Path) -> str:
        out = folder / f"{source.stem}.{source.parent.name}.o"
        more = [flag for name, flag in SETS.items() if name in source.stem]
        command = [compiler, *flags, *more, "-c", str(source), "-o", str(out)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return str(out)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    program = folder / "kernels"
    link = [f"-fsanitize={'fuzzer,' if cases is None else ''}{sanitizers}", "-pthread"]
    subprocess.run([compiler, *objects, *link, "-o", str(program)], check=True, capture_output=True)
    return program


def find_clang() -> str | None:
    """Clang with libFuzzer, if it is here."""
    names = ("clang++", *(f"clang++-{version}" for version in range(22, 13, -1)))
    return next((name for name in names if shutil.which(name)), None)


def main(argv: list[str] | None = None) -> int:
    """Exit status: that of libFuzzer."""
    parser = argparse.ArgumentParser(prog="python -m tests.hard.fuzz.native", description=__doc__)
    parser.add_argument("--cases", type=int, default=-1)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--record", type=Path)
    asked = parser.parse_args(argv)
    compiler = find_clang()
    if compiler is None:
        print("clang++ is not installed: the kernels are not fuzzed in C++", file=sys.stderr)
        return 0
    program = build(compiler, FOLDER)
    corpus = FOLDER / "corpus"
    corpus.mkdir(exist_ok=True)
    began = time.monotonic()
    command = [str(program), f"-runs={asked.cases}", f"-max_total_time={int(60 * asked.minutes)}"]
    command += ["-max_len=2048", "-timeout=60", "-print_final_stats=1", str(corpus)]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER, check=False)
    said = ended.stderr
    print(said[-1500:] if ended.returncode else "\n".join(said.splitlines()[-8:]))
    if asked.record is not None:
        found = re.search(r"number_of_executed_units: (\d+)", said)
        slowest = re.search(r"slowest_unit_time_sec: +(\d+)", said)
        record: dict[str, Any] = {
            "command": "python -m tests.hard.fuzz.native --cases 1000000 --record RECORD",
            "compiler": subprocess.check_output([compiler, "--version"], text=True).splitlines()[0],
            "sanitizers": "address, undefined, float-cast-overflow",
            "cases": int(found[1]) if found else None,
            "slowest_s": int(slowest[1]) if slowest else None,
            "exit": ended.returncode,
            "seconds": round(time.monotonic() - began),
        }
        write_whole(asked.record, (json.dumps(record, indent=1) + "\n").encode())
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main())
