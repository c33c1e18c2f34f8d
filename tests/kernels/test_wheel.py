"""A wheel, built and opened as an index would give it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def test_wheel_is_whole(tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core", reason="scikit-build-core is not installed")
    built = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"),
            *("-C", "cmake.define.CRIS_CUDA=OFF", "-C", f"build-dir={tmp_path / 'build'}"),
            *("--wheel-dir", str(tmp_path), str(ROOT)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("cris_deploy-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(installed)
    # Only what runs: no tests, records, documents or sources of kernels.
    rooms = {name.split("/")[0] for name in names}
    packages = {"cris_deploy", "cris_export", "cris_train", "cris_bench"}
    assert {room for room in rooms if not room.endswith(".dist-info")} == packages
    run = subprocess.run(
        # Without site's .pth files, one of which may lead to this source tree.
        [sys.executable, "-S", str(ROOT / "tests/kernels/wheel_smoke.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{installed}:{Path(np.__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert str(installed) in run.stdout
