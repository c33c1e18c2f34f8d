"""The console `cris-export` and its commands, as far as they need no export."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cris_deploy.bundle.reading import ENGINES, MANIFEST, GraphName
from cris_export.cli.main import main
from tests.helpers import tiny_bundle as tiny
from tests.helpers.plans import write_plans
from tests.stand_ins.fake_machine import machine

__all__ = ["machine"]

ROOT = Path(__file__).parents[2]


def test_console(own_bundle, capsys):
    command = ["check", str(own_bundle), "--backend", "onnxruntime", "--device", "cpu"]
    assert main(command) == 0
    text = capsys.readouterr().out
    for expected in ("onnxruntime", "0.png: a cat", "full graph", "mask_decoder", "passed"):
        assert expected in text
    tiny.change_weights(own_bundle, "mix4", np.negative)
    assert main(command) == 1
    output = capsys.readouterr()
    assert "FAILED" in output.out
    assert "worst stage image_encoder" in output.err
    assert main([*command, "--min-iou", "0"]) == 1
    assert "logit error" in capsys.readouterr().err
    assert main([*command, "--min-iou", "0", "--max-logit-error", "9"]) == 0
    tiny.change_weights(own_bundle, "mix4", lambda w: np.full_like(w, np.nan))
    assert main([*command, "--min-iou", "0"]) == 1
    output = capsys.readouterr()
    assert "NaN" in output.out
    assert "begin in image_encoder" in output.err


def test_console_json(own_bundle, capsys):
    command = ["check", str(own_bundle), "--backend", "onnxruntime", "--device", "cpu", "--json"]
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True
    assert document["choice"]["backend"] == "onnxruntime"
    assert {route["route"] for route in document["routes"]} == {"stages", "full"}
    tiny.change_weights(own_bundle, "project", lambda w: np.full_like(w, np.inf))
    assert main(command) == 1

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert document["passed"] is False
    assert document["routes"][0]["max_logit_error"] is None
    assert "infinity" in document["problem"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--backend", "abacus"], "abacus"),
        (["--backend", "onnxruntime", "--device", "cpu", "--precision", "int8"], "int8"),
        (["--min-iou", "2"], "min_iou"),
        (["--max-logit-error", "-1"], "max_logit_error"),
    ],
)
def test_console_unusable_backend(tiny_bundle, capsys, flags, said):
    assert main(["check", str(tiny_bundle), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["x.bundle"],
        ["check"],
        ["build"],
        ["triton"],
        ["triton", "x.bundle"],
        ["build", "x.bundle", "--backend", "openvino"],
        ["check", "x.bundle", "--engine", "tensorrt"],
        ["--ckpt", "x.pth", "--json"],
    ],
)
def test_what_a_command_does_not_take(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: cris-export" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--check", "x.bundle"], "cris-export check BUNDLE"),
        (["--check=x.bundle", "--json"], "cris-export check BUNDLE"),
        (["--bundle", "x.bundle", "--engine", "tensorrt"], "cris-export build BUNDLE"),
        (["--ckpt", "x.pth", "--check", "x.bundle"], "cris-export check BUNDLE"),
    ],
)
def test_old_spellings_are_told_the_new_one(capsys, old, new):
    assert main(old) == 2
    error = capsys.readouterr().err
    assert new in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["check"], ["build"], ["triton"]])
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    examples = capsys.readouterr().out.partition("examples:")[2]
    assert len([line for line in examples.splitlines() if line.strip()]) == 2
    assert all(" ".join(["cris-export", *command]) in line for line in examples.split("\n")[1:3])


def unlist(bundle: Path) -> None:
    path = bundle / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "plans": {}}))


def make_version_compatible(bundle: Path) -> None:
    for plan in (bundle / ENGINES).iterdir():
        plan.unlink()
    write_plans(bundle, version_compatible=True)


@pytest.mark.parametrize(
    ("change", "flag"),
    [(unlist, "trust_plans"), (make_version_compatible, "allow_plan_code")],
)
def test_plans_are_code_and_run_if_a_flag_says_so(machine, capsys, change, flag):
    change(machine.bundle)
    command = ["check", str(machine.bundle), "--backend", "tensorrt", "--device", "cuda"]
    assert main(command) == 2
    assert flag in capsys.readouterr().err
    assert machine.tensorrt.loads == 0
    assert main([*command, f"--{flag.replace('_', '-')}"]) == 0
    assert "full graph" in capsys.readouterr().out
    assert machine.tensorrt.loads == len(GraphName)
    machine.check()


def test_plans_are_built_and_listed_in_a_table(own_bundle, capsys):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    command = ["build", str(own_bundle), "--engine", "tensorrt-rtx", "--target", "sm86"]
    assert main(command) == 0
    header, *rows, _ = capsys.readouterr().out.splitlines()
    assert header.split() == ["plan", "MB", "built", "in", "s", "products"]
    assert [row.split()[0] for row in rows] == [
        f"{graph}.tensorrt-rtx.sm86.plan" for graph in GraphName
    ]
    assert main([*command, "--max-batch", "0"]) == 2
    assert "--max-batch must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "absent", "said"),
    [
        (
            ["check", "--backend", "onnxruntime", "--device", "cpu"],
            ("onnx", "onnxscript", "onnx_ir"),
            "passed",
        ),
        (["build", "--engine", "tensorrt-rtx", "--target", "sm86"], (), "mask_decoder.tensorrt"),
    ],
)
def test_machines_that_serve_have_no_pytorch(own_bundle, command, absent, said):
    if "tensorrt-rtx" in command:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    code = f"""
import sys
for name in ("torch", "torchvision", "open_clip", *{absent}):
    sys.modules[name] = None  # importing it raises ImportError
from cris_export.cli.main import main
sys.exit(main({[command[0], str(own_bundle), *command[1:]]}))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert said in result.stdout
