"""The build: told apart from its absence, and refused where it was asked for and cannot be."""

import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from cris_deploy.errors import BackendError, KernelError
from cris_deploy.pixels import mask as masks
from cris_deploy.pixels import on_gpu as device
from cris_deploy.pixels.kernels import KernelsBuild, kernels_status, load_kernels

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    load_kernels.cache_clear()
    yield
    load_kernels.cache_clear()


def test_status_of_this_build() -> None:
    pytest.importorskip("cris_deploy._kernels", reason="the extension is not built")
    status = kernels_status()
    assert status.build is KernelsBuild.BUILT
    assert status.simd in {"portable", "avx2", "avx512"}
    assert status.cuda in ((), tuple(int(name) for name in ARCHITECTURES))


def test_absent() -> None:
    with mock.patch("importlib.util.find_spec", return_value=None):
        status = kernels_status()
        assert status.build is KernelsBuild.NOT_BUILT
        assert status.reason is not None
        assert "OpenCV" in status.reason
        mask = masks.mask_from_logits(np.full((26, 26), 5, np.float32), 50, 60, 104, 0.35)
    assert mask[10:-10, 10:-10].all()


def test_present_but_broken_is_an_error_and_no_fallback() -> None:
    spec = mock.patch("importlib.util.find_spec", return_value=object())
    broken = mock.patch("importlib.import_module", side_effect=ImportError("undefined symbol: x"))
    with spec, broken:
        status = kernels_status()
        assert status.build is KernelsBuild.WRONGLY_BUILT
        assert "undefined symbol" in str(status.reason)
        with pytest.raises(KernelError, match="build it again"):
            masks.mask_from_logits(np.zeros((26, 26), np.float32), 50, 60, 104, 0.35)


def test_stale_interface() -> None:
    stale = types.ModuleType("stale")
    stale.INTERFACE = 0  # type: ignore[attr-defined]
    spec = mock.patch("importlib.util.find_spec", return_value=object())
    with spec, mock.patch("importlib.import_module", return_value=stale):
        assert kernels_status().build is KernelsBuild.WRONGLY_BUILT


@pytest.mark.parametrize("kernels", [None, types.SimpleNamespace(CUDA_ARCHITECTURES="")])
def test_device_operations_without_cuda_say_what_to_install(kernels: object) -> None:
    with mock.patch.object(device, "load_kernels", return_value=kernels):
        with pytest.raises(BackendError, match="CRIS_CUDA=ON"):
            device.workspace_bytes([(4, 4)], 416, (104, 104))
        with pytest.raises(BackendError, match="CRIS_CUDA=ON"):
            device.upsample_masks(None, [], 416, [], None)
        with pytest.raises(BackendError, match="CRIS_CUDA=ON"):
            device.letterbox(None, 4, 4, None)


def configure(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not on PATH")
    import pybind11

    return subprocess.run(
        [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(folder),
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *options,
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def test_cuda_on_without_a_compiler_is_an_error(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DCRIS_CUDA=ON", "-DCMAKE_CUDA_COMPILER=/nowhere/nvcc")
    assert result.returncode != 0
    assert "nvcc" in result.stderr


def test_unknown_cuda_option_is_an_error(tmp_path: Path) -> None:
    result = configure(tmp_path, "-DCRIS_CUDA=MAYBE")
    assert result.returncode != 0
    assert "AUTO, ON or OFF" in result.stderr


def test_cmake_names_the_same_architectures() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    found = re.search(r'set\(CMAKE_CUDA_ARCHITECTURES "([^"]+)"\)', text)
    assert found is not None
    assert tuple(found.group(1).replace("-real", "").split(";")) == ARCHITECTURES


@pytest.mark.parametrize("source", ["mask.cu", "letterbox.cu"])
def test_no_kernel_spills(source: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in ARCHITECTURES]
    result = subprocess.run(
        [
            *(nvcc, "-std=c++17", "-O3", "-fmad=false", "-Xptxas", "-v", "--threads", "2"),
            *(*targets, "-fatbin", "-o", str(tmp_path / "out")),
            str(ROOT / "kernels/cuda" / source),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    kernels = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", result.stderr)
    assert {architecture for _, architecture in kernels} == set(ARCHITECTURES)
    usage = re.findall(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr
    )
    assert len(usage) >= len(kernels)
    assert {numbers for entry in usage for numbers in entry} == {"0"}, result.stderr
    # Four blocks of 128 threads, or two of 256, on a multiprocessor of 65,536 registers.
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", result.stderr)]
    assert max(registers) <= 128
