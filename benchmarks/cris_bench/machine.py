"""What a number was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "cris-deploy",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "opencv-python-headless",
)


@dataclass(frozen=True)
class Machine:
    """Hardware and software of a run.

    Attributes:
        cpu: Model name of the processor.
        cores: Processors this process may use.
        flags: Instruction sets that decide speed.
        system: Kernel and architecture.
        python: Version.
        versions: Package -> version, of those installed.
    """

    cpu: str
    cores: int
    flags: tuple[str, ...]
    system: str
    python: str
    versions: dict[str, str]


def describe() -> Machine:
    """Look at the machine this runs on."""
    model, flags = _cpuinfo()
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        cpu=model or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        flags=tuple(
            f for f in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if f in flags
        ),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions,
    )


def _cpuinfo() -> tuple[str, set[str]]:
    """Model name and flags from /proc; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return "", set()
    fields: dict[str, str] = {}
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields.get("model name", ""), set(fields.get("flags", "").split())
