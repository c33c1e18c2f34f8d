"""The CUDA mask step's logic where there is no GPU: its blocks run on the host.

`tests/data/cuda_on_host/cuda_runtime.h` stands in for CUDA; the launches are rewritten to it.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"
HOST = ROOT / "tests/data/cuda_on_host"

LAUNCH = re.compile(r"(\w+(?:<\w+>)?)<<<(\w+), (\w+), 0, stream>>>\(")


def test_equal_to_the_cpu_bit_for_bit(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not on PATH")
    source, launches = LAUNCH.subn(
        r"host_launch(\2, \3, \1, ", (KERNELS / "cuda/mask.cu").read_text()
    )
    assert launches == 4
    rewritten = tmp_path / "mask.cpp"
    rewritten.write_text(source)
    program = tmp_path / "program"
    # One build for this machine of everything, so that host and "device" round alike; -w since
    # CUDA's pragmas and stand-ins mean nothing to the host's compiler.
    command = [compiler, "-std=c++20", "-O1", "-march=native", "-ffp-contract=off", "-pthread"]
    command += ["-w", f"-I{HOST}", f"-I{KERNELS}", f"-I{KERNELS / 'cuda'}"]
    command += ["-fsanitize=undefined", "-fno-sanitize-recover=undefined"]
    sources = [rewritten, HOST / "main.cpp", *(KERNELS / "cpu").glob("*.cpp")]
    subprocess.run(
        [*command, "-o", str(program), *map(str, sources)], check=True, capture_output=True
    )
    result = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
