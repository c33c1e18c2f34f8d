"""cris-info: what is installed, built and missing on this machine."""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cris_deploy.backends import BackendName, BackendStatus, status
from cris_deploy.cli import guarded
from cris_deploy.mask import KernelsBuild, KernelsStatus, kernels_status
from cris_deploy.versions import version_of

_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "runtime": (
        *("numpy", "opencv-python-headless", "pillow", "tokenizers", "ftfy", "regex", "tqdm"),
    ),
    "backends": ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"),
    "export": ("torch", "torchvision", "open_clip_torch", "onnx", "onnxscript"),
    "engines": ("cuda-core", "cuda-bindings", "pycuda", "polygraphy"),
}

# Names in /proc/cpuinfo; a machine without that file shows none.
_FEATURES: Final[Mapping[str, tuple[str, ...]]] = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
    "BF16": ("avx512_bf16", "bf16"),
    "AMX": ("amx_tile",),
}


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor; `usable` counts the logical cores this process may use."""

    name: str
    cores: int
    usable: int
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU as its driver describes it."""

    name: str
    memory: str
    compute_capability: str
    driver: str


@dataclass(frozen=True, slots=True)
class Info:
    """All that cris-info shows. A version is None if the package is not installed."""

    cris_deploy: str | None
    python: str
    platform: str
    cpu: Cpu
    gpus: tuple[Gpu, ...]
    packages: Mapping[str, Mapping[str, str | None]]
    backends: tuple[BackendStatus, ...]
    kernels: KernelsStatus


def collect() -> Info:
    """Look at this machine and installation."""
    return Info(
        cris_deploy=version_of("cris-deploy"),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=platform.platform(),
        cpu=_cpu(Path("/proc/cpuinfo")),
        gpus=_gpus(),
        packages={
            group: {name: version_of(name) for name in names} for group, names in _PACKAGES.items()
        },
        backends=tuple(status(name) for name in BackendName),
        kernels=kernels_status(),
    )


def describe(info: Info) -> str:
    """Give the report as text."""
    cpu = info.cpu
    lines = [
        f"cris-deploy   {info.cris_deploy or 'not installed (run from a checkout)'}",
        f"Python        {info.python}, {info.platform}",
        f"CPU           {cpu.name}, {cpu.usable} of {cpu.cores} logical cores usable",
        f"              {', '.join(cpu.features) or 'no vector extensions reported'}",
    ]
    lines += [
        f"GPU           {gpu.name}, {gpu.memory}, compute capability {gpu.compute_capability}, "
        f"driver {gpu.driver}"
        for gpu in info.gpus
    ] or ["GPU           none (nvidia-smi finds no NVIDIA GPU)"]
    lines += ["", "Kernels"]
    kernels = info.kernels
    if kernels.build is KernelsBuild.BUILT:
        architectures = ", ".join(f"sm_{name}" for name in kernels.cuda)
        lines.append(f"  built         {kernels.simd}; CUDA: {architectures or 'not compiled in'}")
    else:
        lines.append(f"  {kernels.build.value:<13} {kernels.reason}")
    lines += ["", "Backends"]
    for backend in info.backends:
        if backend.problem is not None:
            lines.append(f"  {backend.name:<13} unusable: {backend.problem}")
        elif backend.version is None:
            lines.append(f"  {backend.name:<13} missing: {backend.install}")
        else:
            devices = ", ".join(backend.devices)
            lines.append(f"  {backend.name:<13} {backend.version} (built for {devices})")
    for group, packages in info.packages.items():
        lines += ["", f"Packages: {group}"]
        lines += [f"  {name:<24}{version or '-'}" for name, version in packages.items()]
    return "\n".join(lines)


def _cpu(cpuinfo: Path) -> Cpu:
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    # "Features" is what 64-bit ARM calls its flags.
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    return Cpu(
        name=fields.get("model name") or platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        usable=len(os.sched_getaffinity(0)),
        features=tuple(name for name, names in _FEATURES.items() if flags & set(names)),
    )


def _gpus() -> tuple[Gpu, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = "--query-gpu=name,memory.total,compute_cap,driver_version"
    try:
        result = subprocess.run(
            [program, query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):  # a driver that does not answer is no GPU
        return ()
    rows = ([cell.strip() for cell in line.split(",")] for line in result.stdout.splitlines())
    return tuple(Gpu(*row) for row in rows if len(row) == 4)


def main(argv: Sequence[str] | None = None) -> int:
    """Run cris-info; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="cris-info", description="Show what is installed, built and missing."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)

    def action() -> int:
        info = collect()
        print(_to_json(info) if arguments.json else describe(info))
        return 0

    return guarded("cris-info", action)


def _to_json(info: Info) -> str:
    def plain(value: object) -> object:
        return value.value if isinstance(value, KernelsBuild) else str(value)

    return json.dumps(dataclasses.asdict(info), indent=2, default=plain)


if __name__ == "__main__":
    sys.exit(main())
