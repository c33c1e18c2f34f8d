"""Importing costs nothing, and the runtime needs no training framework."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HEAVY = (
    *("torch", "open_clip", "onnxruntime", "openvino", "cv2", "tokenizers", "ftfy", "PIL", "numpy"),
    *("msgspec", "tabulate", "cris_deploy.engine"),
)


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, cris_deploy; print([n for n in {HEAVY!r} if n in sys.modules])"
    assert run(code) == "[]"


def test_the_engine_imports_no_training_framework():
    code = (
        "import sys; from cris_deploy import Engine;"
        "import cris_deploy.execution.stream, cris_deploy.cli.segment, cris_deploy.cli.info;"
        "print([n for n in ('torch', 'open_clip', 'onnx', 'onnxruntime', 'cris_train',"
        " 'cris_export', 'cris_bench') if n in sys.modules])"
    )
    assert run(code) == "[]"


def test_a_run_needs_no_torch(tiny_bundle):
    code = f"""
import sys
for name in ("torch", "open_clip", "onnx"):
    sys.modules[name] = None  # importing it raises ImportError
import numpy as np
from cris_deploy import Engine
with Engine({str(tiny_bundle)!r}, threads=1) as engine:
    print(engine.segment(np.zeros((9, 9, 3), np.uint8), "a cat").mask.shape)
"""
    assert run(code) == "(9, 9)"


def test_every_public_name_is_there():
    import cris_deploy

    assert dir(cris_deploy) == sorted(cris_deploy.__all__)
    for name in cris_deploy.__all__:
        if name != "__version__":
            assert getattr(cris_deploy, name).__name__ == name
    errors = ("Bundle", "Backend", "Expression", "Image", "Input", "Kernel")
    assert {"CrisError", *(f"{kind}Error" for kind in errors)} <= set(cris_deploy.__all__)
    enums = {"BackendName", "Compute", "Device", "Precision"}
    others = {"CheckReport", "DeviceSegmentation", "check"}
    assert enums | others <= set(cris_deploy.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        cris_deploy.nonsense  # noqa: B018


def test_a_public_name_is_no_module():
    # A module of the same name takes a function's place when it is imported.
    code = (
        "import cris_deploy, importlib, pkgutil;"
        "names = [m.name for m in pkgutil.iter_modules(cris_deploy.__path__)];"
        "print(sorted(set(names) & set(cris_deploy.__all__)))"
    )
    assert run(code) == "[]"
