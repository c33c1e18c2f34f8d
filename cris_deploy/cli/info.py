"""cris-info: what is installed, built and missing on this machine."""

import dataclasses
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cris_deploy.cli import Parser, guarded
from cris_deploy.execution.backends import BackendName, BackendStatus, status
from cris_deploy.machine.cpu import Cpu, this_cpu
from cris_deploy.machine.gpu import Survey, survey_gpus
from cris_deploy.machine.versions import version_of
from cris_deploy.pixels.mask import KernelsBuild, KernelsStatus, kernels_status

_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "runtime": (
        *(
            "numpy",
            "opencv-python-headless",
            "pillow",
            "tokenizers",
            "ftfy",
            "regex",
            "msgspec",
            "tabulate",
            "tqdm",
        ),
    ),
    "backends": ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx"),
    "export": ("torch", "torchvision", "open_clip_torch", "onnx", "onnxscript"),
    "signatures": ("py-minisign",),
    "engines": ("cuda-core", "cuda-bindings", "pycuda", "polygraphy"),
}

# Whether products of bytes are added in 16 bits -> what that means.
_INT8: Final[Mapping[bool, str]] = {
    False: "exact sums",
    True: "16-bit sums (no VNNI): auto computes int8 bundles in float32; "
    "older int8 bundles run on onnxruntime alone",
}


@dataclass(frozen=True, slots=True)
class Info:
    """All that cris-info shows. A version is None if the package is not installed.

    `gpu` has the GPUs that CUDA shows to this process, in the order in which device="cuda:N" counts
    them.
    """

    cris_deploy: str | None
    python: str
    platform: str
    cpu: Cpu
    gpu: Survey
    packages: Mapping[str, Mapping[str, str | None]]
    backends: tuple[BackendStatus, ...]
    kernels: KernelsStatus


def collect() -> Info:
    """Look at this machine and installation."""
    return Info(
        cris_deploy=version_of("cris-deploy"),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=platform.platform(),
        cpu=this_cpu(),
        gpu=survey_gpus(),
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
        f"              int8: {_INT8[cpu.saturates]}",
    ]
    served = (
        "" if info.gpu.cuda is None else f", driver for CUDA {info.gpu.cuda[0]}.{info.gpu.cuda[1]}"
    )
    lines += [
        f"{f'GPU cuda:{index}':<14}{gpu.name}, {gpu.memory_bytes >> 20:,} MiB, "
        f"{gpu.compute_capability}{served}"
        for index, gpu in enumerate(info.gpu.gpus)
    ] or [f"GPU           none ({info.gpu.problem})"]
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


def _parser() -> Parser:
    parser = Parser(
        prog="cris-info",
        description="Show what is installed, built and missing.",
        examples=("cris-info", "cris-info --json > machine.json"),
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run cris-info; gives the exit code."""
    arguments = _parser().parse_args(argv)

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
