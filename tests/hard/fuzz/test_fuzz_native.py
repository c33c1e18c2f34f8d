"""The kernels under AddressSanitizer and UBSan with cases by chance; libFuzzer: `make fuzz`."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.hard.fuzz.native import build

CASES = 1500


def test_kernels_survive_any_logits_and_geometry(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not on PATH")
    program = build(compiler, tmp_path, cases=CASES)
    result = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == f"{CASES} cases\n"
