"""Which backends there are, what is asked of them, and what `auto` takes."""

import importlib.util
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cris_deploy import Engine
from cris_deploy.bundle.manifest import Precision
from cris_deploy.errors import BackendError, InputError
from cris_deploy.execution.backends import (
    Backend,
    BackendName,
    Compute,
    Device,
    onnxruntime,
    openvino,
    parse_device,
    tensorrt,
    tensorrt_rtx,
)
from cris_deploy.execution.backends.selection import choose_compute
from cris_deploy.machine.cpu import Cpu
from cris_deploy.machine.gpu import Gpu
from tests.stand_ins.fake_machine import machine, surveyed

__all__ = ["machine"]

GPU = Gpu("NVIDIA H100", "sm90", 80 << 30)

FILES: dict[BackendName, Backend] = {
    BackendName.TENSORRT: tensorrt,
    BackendName.TENSORRT_RTX: tensorrt_rtx,
    BackendName.OPENVINO: openvino,
    BackendName.ONNXRUNTIME: onnxruntime,
}
WHAT_A_FILE_HAS = [name for name in vars(Backend) if not name.startswith("_")]


@pytest.mark.parametrize("name", BackendName)
def test_the_file_of_a_backend_has_what_the_interface_lists(name):
    file = FILES[name]
    assert file.__name__.endswith("." + name.replace("-", "_"))
    assert len(WHAT_A_FILE_HAS) > 5
    for what in WHAT_A_FILE_HAS:
        assert hasattr(file, what), what
    # For each device that it may lack there is something to do.
    assert {*Device} - {*file.DEVICES} <= {*file.REMEDIES}


def test_auto_tries_gpus_first_and_the_fastest_first(tiny_bundle, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError) as caught:
        Engine(tiny_bundle)
    assert re.findall(r"(\S+) on (\w+) \(", str(caught.value)) == [
        ("tensorrt", "cuda"),
        ("tensorrt-rtx", "cuda"),
        ("onnxruntime", "cuda"),
        ("openvino", "cpu"),
        ("onnxruntime", "cpu"),
    ]


def test_looking_at_backends_imports_no_runtime_and_nothing_of_cuda():
    files = ", ".join(
        f"cris_deploy.execution.backends.{file.__name__.split('.')[-1]}" for file in FILES.values()
    )
    code = (
        f"import sys, {files};"
        "names = ('tensorrt', 'tensorrt_rtx', 'openvino', 'onnxruntime', 'cuda',"
        " 'cris_deploy.execution.cuda');"
        "print([name for name in names if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("device", ["cuda:", "cuda:-1", "cpu:0", "CUDA", "gpu", "cuda:1x", "", 0])
def test_what_is_no_device(tiny_bundle, device):
    with pytest.raises(InputError, match=r"device is .*one of auto, cpu, cuda, or cuda:N"):
        Engine(tiny_bundle, device=device)


def test_devices_are_read():
    assert parse_device("auto") == (None, 0)
    assert parse_device("cpu") == (Device.CPU, 0)
    assert parse_device("cuda:12") == (Device.CUDA, 12)


def test_a_gpu_that_auto_leaves_is_a_warning(machine, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "cris_deploy")
    surveyed(monkeypatch, GPU)
    machine.missing = {"libcudnn.so.9"}
    with Engine(machine.bundle, backend="onnxruntime") as engine:
        assert engine.info.device is Device.CPU
        assert "libcudnn.so.9" in engine.info.reason
        warning = engine.info.choice.warning
    assert warning is not None
    assert warning.startswith(
        "the CPU serves, though CUDA shows NVIDIA H100: onnxruntime on cuda ("
    )
    assert "libcudnn.so.9 cannot be loaded: run pip install" in warning
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [warning]


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"backend": "openvino"}])
def test_who_asks_for_the_cpu_is_not_warned(machine, monkeypatch, caplog, options):
    surveyed(monkeypatch, GPU)
    with Engine(machine.bundle, **{"backend": "onnxruntime", **options}) as engine:
        assert engine.info.choice.warning is None
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_without_a_gpu_nobody_is_warned(tiny_bundle, monkeypatch, caplog):
    surveyed(monkeypatch, cuda=None)
    with Engine(tiny_bundle) as engine:
        assert engine.info.choice.warning is None
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_int8_products_are_not_promised(machine):
    said = "onnxruntime on cuda runs an int8 bundle in fp32: take backend tensorrt, or device cpu"
    with pytest.raises(BackendError, match=said):
        choose_compute(
            onnxruntime, BackendName.ONNXRUNTIME, Device.CUDA, Precision.INT8, Compute.INT8
        )


def a_cpu(*features):
    return Cpu("a processor", "x86_64", 2, 2, features)


AVX2 = a_cpu("AVX2")
VNNI = a_cpu("AVX2", "AVX-512", "VNNI")
ARM = Cpu("a processor", "aarch64", 2, 2, ("BF16",))
OLD = ("FP32", "INT8")
NEW = ("FP32", "INT8", "BF16")


@pytest.mark.parametrize(
    ("file", "cpu", "capabilities", "taken"),
    [
        (openvino, AVX2, OLD, Compute.FP32),  # its int8 is no faster there than its float32
        (openvino, VNNI, OLD, Compute.INT8),
        (openvino, VNNI, NEW, Compute.INT8_BF16),
        (openvino, ARM, OLD, Compute.INT8),
        (onnxruntime, AVX2, OLD, Compute.FP32),
        (onnxruntime, VNNI, NEW, Compute.FP32),  # slower in int8 even so
        (onnxruntime, ARM, OLD, Compute.INT8),
    ],
)
def test_auto_takes_what_is_fastest_on_a_processor(file, cpu, capabilities, taken, monkeypatch):
    monkeypatch.setattr(file, "this_cpu", lambda: cpu)
    core = SimpleNamespace(get_property=lambda *_: list(capabilities))
    monkeypatch.setattr(openvino, "core", lambda: core)
    name = BackendName(file.PACKAGE)

    def choose(asked):
        return choose_compute(file, name, Device.CPU, Precision.INT8, asked)

    assert choose(None) is taken
    assert choose(Compute.INT8) is Compute.INT8  # what is asked for is had
    assert choose(Compute.FP32) is Compute.FP32
