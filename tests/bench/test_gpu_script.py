"""The script for GPU machines, run on a GPU that is a stand-in: it must not fail for itself."""

import argparse
import json

import pytest

from cris_deploy import Engine
from cris_deploy.errors import BackendError
from tests.gpu import conftest, open_clip_parts, run_all
from tests.stand_ins.fake_machine import machine

__all__ = ["machine"]


@pytest.fixture
def options():
    return argparse.Namespace(rounds=2, runs=3, compile=[], open_clip=None)


def test_times_every_backend(machine, monkeypatch, options):
    monkeypatch.setattr(run_all, "BATCHES", (1, 4, 8, 16))
    monkeypatch.setattr(Engine, "_warn", lambda *_: None)
    monkeypatch.setattr(conftest, "build_plans", lambda bundle: None)
    monkeypatch.setattr(run_all, "make_peers", lambda *_: ({}, {"PyTorch": "not here"}))
    result = run_all.time_bundle(machine.bundle, "fp32", options)
    json.dumps(result)
    assert result["missing"] == {}
    assert result["peers"] == {"PyTorch": "not here"}
    names = {
        f"{backend}, {graphs}"
        for backend in conftest.BACKENDS
        for graphs in ("graphs", "no graphs")
    }
    for part in ("batch 1", "batch 8", "expressions 1", "expressions 8"):
        assert {n: len(v) for n, v in result[part]["milliseconds"].items()} == dict.fromkeys(
            names, 2
        )
        assert set(result[part]["median_ms"].values()) == {0.5}
    # Beyond the plans' profiles: said, and the rest goes on.
    failures = result["batch 16"]["failures"]
    assert set(result["batch 16"]["median_ms"]) == {
        "onnxruntime, graphs",
        "onnxruntime, no graphs",
    }
    assert "has no profile for image (16," in failures["tensorrt, graphs"]
    machine.check()


def test_says_what_is_missing(machine, monkeypatch, options):
    monkeypatch.setattr(conftest, "build_plans", lambda bundle: None)
    machine.tensorrt.refuse = "another machine"
    engines, report = run_all.make_engines(machine.bundle)
    assert len(engines) == 4
    assert "another machine" in report["missing"]["tensorrt, graphs"]


def test_builders_that_cannot_build_are_told(machine, monkeypatch):
    def refuse(bundle, options):
        raise BackendError(f"no {options.kind} here")

    engines = pytest.importorskip("cris_export.plans.build")
    monkeypatch.setattr(engines, "build_plans", refuse)
    monkeypatch.setattr(conftest, "_UNBUILT", {})
    conftest.build_plans(machine.bundle)
    assert conftest._UNBUILT == {
        "tensorrt": "no tensorrt here",
        "tensorrt-rtx": "no tensorrt-rtx here",
    }


def test_four_files_of_open_clip(tmp_path, monkeypatch):
    import subprocess
    import sys
    from pathlib import Path

    open_clip = pytest.importorskip("open_clip")
    folder = Path(open_clip.__file__).parent
    for name in open_clip_parts.FILES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    # In a process of its own, in which neither open_clip nor torchvision can be found.
    code = """
import importlib.util, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/train"]
find = importlib.util.find_spec
hidden = ("open_clip", "torchvision")
importlib.util.find_spec = lambda name, *a: None if name in hidden else find(name, *a)
from tests.gpu.open_clip_parts import provide
assert "--open-clip" in provide(None)
assert "lacks" in provide(Path("/"))
assert provide(Path(sys.argv[2])) is None
import torch
from cris_train.model import Cris, CrisConfig
net = Cris(CrisConfig.tiny()).eval()
size, length = net.config.input_size, net.config.word_len
print(net(torch.zeros(1, 3, size, size), torch.ones(1, length, dtype=torch.long)).shape)
assert "torchvision.transforms" not in sys.modules
"""
    root = Path(run_all.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([1, 1," in done.stdout
