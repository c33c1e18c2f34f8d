"""A hand-made record: every part of one, small enough to check by hand."""

from typing import Any

from cris_bench.record.machine import Machine
from cris_bench.record.rows import Clients, Role, Row, Scope
from cris_bench.record.schema import (
    FORMAT,
    Absent,
    Accuracy,
    BundleFacts,
    Ceiling,
    Memory,
    ModelFacts,
    Parity,
    Record,
    StageWork,
)

EAGER = "PyTorch eager fp32"
MODEL = ModelFacts("RN50", 416, 17, 146_849_122, "random")


def machine(**changes: Any) -> Machine:
    """A machine like no other."""
    known: dict[str, Any] = {
        "cpu": "Example CPU 9000",
        "cores": 2,
        "flags": ("avx2", "avx512f"),
        "system": "Linux 6.1 x86_64",
        "python": "3.11.2",
        "versions": {"torch": "2.15.0", "openvino": "2026.4.1"},
        "clock_mhz": 3700.0,
    }
    return Machine(**{**known, **changes})


def row(
    name: str = EAGER,
    seconds: tuple[float, ...] = (0.5,) * 6,
    ratio: float | None = 1.0,
    **changes: Any,
) -> Row:
    """A row of the network scope, of a peer's if not said otherwise."""
    known: dict[str, Any] = {
        "scope": Scope.NETWORK,
        "role": Role.BASELINE if name == EAGER else Role.PEER,
        "device": "cpu",
        "compute": "fp32",
        "batch": 1,
        "expressions": 1,
        "masks": 1,
    }
    return Row(name=name, seconds=seconds, ratio=ratio, **{**known, **changes})


def ours(compute: str = "int8", seconds: tuple[float, ...] = (0.1,) * 6, **changes: Any) -> Row:
    """A row of the engine in OpenVINO."""
    known: dict[str, Any] = {"ratio": 5.0, "role": Role.ENGINE, "bundle": "int8"}
    return row(f"openvino {compute}", seconds, **{**known, "compute": compute, **changes})


def record(*rows: Row, **changes: Any) -> Record:
    """A record of these rows, or of two in the network scope; without the optional parts."""
    known: dict[str, Any] = {
        "format": FORMAT,
        "created": "2026-11-23T01:00:00+00:00",
        "command": ("--scopes", "all"),
        "commit": "0123abc",
        "machine": machine(),
        "model": MODEL,
        "warmup": 5,
        "iterations": 30,
        "threads": None,
        "image_height": 1080,
        "image_width": 1920,
        "rows": rows or (row(), ours()),
        "bundles": {"int8": BundleFacts("int8", "ab" * 32, 150_000_000, Parity.PROVED, 0.995)},
        "paper_fps": 19.22,
    }
    return Record(**{**known, **changes})


def whole_record() -> Record:
    """A record with all of its parts."""
    engine = "openvino int8"
    return record(
        row(logit_error=0.0),
        row("ONNX Runtime, plain export", (0.3, 0.4, 0.4, 0.5), 1.25, logit_error=1e-5),
        ours(logit_error=0.25),
        row(seconds=(0.6, 0.6), scope=Scope.END_TO_END),
        ours(seconds=(0.103, 0.103), scope=Scope.END_TO_END),
        ours(seconds=(0.32, 0.32), ratio=12.5, expressions=8, masks=8),
        ours(seconds=(0.04,), ratio=None, scope=Scope.EXPRESSION, note="cached image"),
        ours(seconds=(-0.0001, 0.0002, 0.0003), ratio=None, scope=Scope.OVERHEAD),
        ours(seconds=(1.5,), ratio=None, scope=Scope.LOAD),
        clients=(Clients(engine, "cpu", "int8", 4, 2.0, 4, (0.1, 0.2, 0.3, 0.4)),),
        memory=(Memory(engine, 600_000_000, 150_000_000),),
        ceilings=(Ceiling("cpu", "fp32", 450e9, 60e9), Ceiling("cpu", "int8", 1500e9, 60e9)),
        work=(
            StageWork("image_encoder", 85_000_000_000, 40_000_000, 0.1, engine),
            StageWork("text_encoder", 2_600_000_000, 60_000_000, 0.01, engine),
        ),
        absent=(Absent("tensorrt", "pip install 'cris-deploy[tensorrt]'"),),
        accuracy=(Accuracy(engine, 0.7, 0.65, {"Pr@50": 0.8}, 1200, "scenes", "val"),),
    )
