"""What a number was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cris_deploy.machine.cpu import this_cpu
from cris_deploy.machine.versions import versions_of

PACKAGES = (
    "cris-deploy",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-core",
    "cuda-bindings",
    "numpy",
    "opencv-python-headless",
    "ray",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware and software of a run.

    Attributes:
        cpu: Model name of the processor.
        cores: Processors this process may use.
        flags: Vector extensions that decide speed.
        system: Kernel and architecture.
        python: Version.
        versions: Package -> version, of those installed.
        clock_mhz: Highest clock of a processor; None where it is not told.
        gpu: Name, driver, highest clocks and power limit of a GPU, of the first one for a run on
            the CPU; None without one.
    """

    cpu: str
    cores: int
    flags: tuple[str, ...]
    system: str
    python: str
    versions: dict[str, str]
    clock_mhz: float | None = None
    gpu: str | None = None


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def describe(gpu: str | None = None) -> Machine:
    """Look at the machine this runs on; `gpu` is the one to name, as nvidia-smi takes it."""
    cpu = this_cpu()
    return Machine(
        cpu=cpu.name,
        cores=cpu.usable,
        flags=cpu.features,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=versions_of(PACKAGES),
        clock_mhz=_clock(),
        gpu=_gpu(gpu or "0"),
    )


def commit() -> str | None:
    """The source tree's commit, with "+" behind it if tracked files differ; None outside of one."""
    here = Path(__file__)
    if _output("git", "-C", str(here.parent), "ls-files", here.name) != here.name:
        return None  # installed, perhaps inside somebody else's repository
    found = _output("git", "-C", str(here.parent), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(here.parent), "status", "--porcelain", "-uno")
    return found and found + ("+" if changes else "")


def _clock() -> float | None:
    """The highest clock that the kernel knows of; in a virtual machine, the one it was told."""
    limit = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if limit.exists():
        return int(limit.read_text()) / 1e3  # kHz
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return max(clocks, default=None)


def _gpu(which: str) -> str | None:
    fields = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit"
    found = _output("nvidia-smi", "-i", which, f"--query-gpu={fields}", "--format=csv,noheader")
    if not found:
        return None
    name, driver, clock, memory, power = (part.strip() for part in found.split(","))
    return f"{name}, driver {driver}, up to {clock}, memory {memory}, at most {power}"


def _output(*command: str) -> str | None:
    """What a command prints; None if there is no such command, or it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
