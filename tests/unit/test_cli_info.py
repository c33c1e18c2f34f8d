"""cris-info: text and JSON, and what it says where something is missing."""

import dataclasses
import importlib.metadata
import json
import subprocess

import pytest

from cris_deploy.backends import BackendName, Device
from cris_deploy.cli import info as module
from cris_deploy.cli.info import Gpu, collect, describe, main
from cris_deploy.cpu import describe as describe_cpu
from cris_deploy.mask import KernelsBuild, KernelsStatus


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
    assert document["backends"][0]["name"] == "onnxruntime"
    assert document["backends"][0]["devices"][-1:] != []
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
    backend = info.backends[0]
    missing = dataclasses.replace(backend, version=None, devices=())
    text = describe(dataclasses.replace(info, backends=(missing,)))
    assert "missing: pip install 'cris-deploy[cpu]'" in text
    broken = dataclasses.replace(backend, problem="cannot be imported")
    assert "unusable: cannot be imported" in describe(dataclasses.replace(info, backends=(broken,)))
    both = dataclasses.replace(backend, devices=(Device.CPU, Device.CUDA))
    assert "built for cpu, cuda" in describe(dataclasses.replace(info, backends=(both,)))
    assert backend.name is BackendName.ONNXRUNTIME


def test_backend_that_is_not_installed(monkeypatch):
    import importlib.util

    from cris_deploy.backends import status

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


def test_gpus(info, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert module._gpus() == ()
    assert "GPU           none" in describe(dataclasses.replace(info, gpus=()))
    monkeypatch.setattr(module.shutil, "which", lambda name: "/bin/" + name)
    answer = "NVIDIA X, 81559 MiB, 9.0, 595.10\n"
    monkeypatch.setattr(
        module.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, answer, "")
    )
    gpus = module._gpus()
    assert gpus == (Gpu("NVIDIA X", "81559 MiB", "9.0", "595.10"),)
    assert "NVIDIA X, 81559 MiB" in describe(dataclasses.replace(info, gpus=gpus))

    def fail(*arguments, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(module.subprocess, "run", fail)
    assert module._gpus() == ()
