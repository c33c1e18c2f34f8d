"""cris-info: text and JSON, and what it says where something is missing."""

import dataclasses
import importlib.metadata
import json

import pytest

from cris_deploy.cli.info import collect, describe, main
from cris_deploy.execution.backends import BackendName, Device
from cris_deploy.machine.cpu import describe as describe_cpu
from cris_deploy.machine.gpu import Gpu, Survey
from cris_deploy.pixels.mask import KernelsBuild, KernelsStatus


@pytest.fixture(scope="module")
def info():
    return collect()


def test_text(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    for expected in ("Python", "CPU", "GPU", "Kernels", "onnxruntime", "numpy", "torch"):
        assert expected in text


def test_json(capsys):
    assert main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["packages"]["runtime"]["numpy"] == importlib.metadata.version("numpy")
    assert document["kernels"]["build"] in ("built", "not built", "wrongly built")
    backends = {backend["name"]: backend for backend in document["backends"]}
    assert list(backends) == list(BackendName)
    assert backends["onnxruntime"]["devices"]
    assert document["cpu"]["usable"] >= 1


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (KernelsStatus(KernelsBuild.BUILT, "avx2", (80, 90)), "avx2; CUDA: sm_80, sm_90"),
        (KernelsStatus(KernelsBuild.BUILT, "portable"), "CUDA: not compiled in"),
        (KernelsStatus(KernelsBuild.NOT_BUILT, reason="get a compiler"), "not built     get a com"),
        (KernelsStatus(KernelsBuild.WRONGLY_BUILT, reason="undefined"), "wrongly built undefined"),
    ],
)
def test_kernels(info, status, expected):
    assert expected in describe(dataclasses.replace(info, kernels=status))


def test_backends(info):
    (backend,) = [one for one in info.backends if one.name is BackendName.ONNXRUNTIME]
    missing = dataclasses.replace(backend, version=None, devices=())
    text = describe(dataclasses.replace(info, backends=(missing,)))
    assert "missing: pip install 'cris-deploy[cpu]'" in text
    broken = dataclasses.replace(backend, problem="cannot be imported")
    assert "unusable: cannot be imported" in describe(dataclasses.replace(info, backends=(broken,)))
    both = dataclasses.replace(backend, devices=(Device.CPU, Device.CUDA))
    assert "built for cpu, cuda" in describe(dataclasses.replace(info, backends=(both,)))


def test_backend_that_is_not_installed(monkeypatch):
    import importlib.util

    from cris_deploy.execution.backends import status

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    result = status(BackendName.ONNXRUNTIME)
    assert (result.version, result.devices, result.problem) == (None, (), None)


CPUINFO = """\
processor : 0
model name : Some CPU @ 3 GHz
flags : fpu avx2 avx512f avx512_vnni

processor : 1
model name : Some CPU @ 3 GHz
flags : fpu
"""


def test_cpu(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(CPUINFO)
    cpu = describe_cpu(path)
    assert cpu.name == "Some CPU @ 3 GHz"
    assert cpu.features == ("AVX2", "AVX-512", "VNNI")
    assert describe_cpu(tmp_path / "none").features == ()


def test_gpus_as_cuda_counts_them(info):
    gpus = (Gpu("NVIDIA X", "sm90", 80 << 30), Gpu("NVIDIA Y", "sm86", 24 << 30))
    text = describe(dataclasses.replace(info, gpu=Survey(gpus, None, (13, 2))))
    assert "GPU cuda:0    NVIDIA X, 81,920 MiB, sm90, driver for CUDA 13.2\n" in text
    assert "GPU cuda:1    NVIDIA Y, 24,576 MiB, sm86" in text
    hidden = Survey((), "the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES is '')", (13, 2))
    text = describe(dataclasses.replace(info, gpu=hidden))
    assert (
        "GPU           none (the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES is ''))" in text
    )
