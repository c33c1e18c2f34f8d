"""Everything there is to do on a machine with a GPU, in one command:

    python tests/gpu/run_all.py --fp16 model-fp16.bundle --fp32 model.bundle --out gpu.json

1. the extension is built with CUDA, if it is not; 2. tests/gpu run; 3. the network is timed by
every backend that is installed, beside PyTorch. What is missing is said in the report and left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
COMPILED = "torch.compile"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
PACKAGES = (
    "cuda-bindings",
    "cuda-core",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "open_clip_torch",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "pycuda",
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fp16", type=Path, help="bundle exported with --fp16")
    parser.add_argument("--fp32", type=Path, help="bundle exported without")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="report (JSON)")
    parser.add_argument("--open-clip", type=Path, help="folder with open_clip's four files")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--runs", type=int, default=20, help="runs queued per round")
    parser.add_argument("--no-tests", action="store_true", help="only time")
    parser.add_argument(
        "--compile",
        type=int,
        nargs="*",
        default=[1, 32],
        help="batches for torch.compile, minutes each",
    )
    options = parser.parse_args(argv)
    sys.path[:0] = [str(ROOT / part) for part in ("", "export", "train", "benchmarks")]
    report: dict[str, Any] = {"created": datetime.now(UTC).isoformat(timespec="seconds")}

    def step(name: str, work: Any) -> None:
        print(f"--- {name}", flush=True)
        try:
            report[name] = work()
        except Exception:  # one step's failure must not lose the others' results
            report[name] = {"failed": traceback.format_exc().splitlines()[-20:]}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps(report[name], indent=1)[-3000:], flush=True)

    step("machine", machine)
    step("extension", build_extension)
    if not report["machine"].get("gpus"):
        print("no GPU: nothing to run")
        return 1
    if not options.no_tests:
        step("tests", lambda: run_tests(options.fp16 or options.fp32))
    step("timing", lambda: time_all(options))
    return 0 if report.get("tests", {}).get("exit", 0) == 0 else 1


def machine() -> dict[str, Any]:
    """GPU, driver and versions."""
    from dataclasses import asdict

    from cris_deploy.machine.gpu import survey_gpus

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    survey = survey_gpus()
    smi = shutil.which("nvidia-smi")
    query = "--query-gpu=name,driver_version,clocks.max.sm,power.limit"
    driver = (
        subprocess.run([smi, query, "--format=csv"], capture_output=True, text=True, check=False)
        if smi
        else None
    )
    return {
        "gpus": [asdict(found) for found in survey.gpus],
        "problem": survey.problem,
        "driver": driver.stdout.strip().splitlines() if driver else "nvidia-smi is not on PATH",
        "python": sys.version.split()[0],
        "versions": versions,
    }


def build_extension() -> dict[str, Any]:
    """Build the extension with CUDA unless the one that is here has it."""
    from cris_deploy.pixels.mask import kernels_status

    status = kernels_status()
    if not status.cuda:
        if shutil.which("nvcc") is None:
            return {"cuda": [], "problem": f"nvcc is not on PATH; {status.reason or 'no CUDA'}"}
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "-e", str(ROOT)]
        command += ["-C", "cmake.define.CRIS_CUDA=ON"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        check = "from cris_deploy.pixels.mask import kernels_status as s; print(*s().cuda)"
        asked = subprocess.run(
            [sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=False
        )
        if done.returncode or not asked.stdout.strip():
            return {"cuda": [], "problem": (done.stdout + done.stderr)[-2000:]}
        # This process has looked already, and would go on with the old one.
        os.execv(sys.executable, [sys.executable, *sys.argv])
    return {"cuda": list(status.cuda), "simd": status.simd}


def run_tests(bundle: Path | None) -> dict[str, Any]:
    """Run tests/gpu; the report keeps the end of what pytest printed."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(sys.path[:4])
    if bundle is not None:
        environment["CRIS_GPU_BUNDLE"] = str(bundle.resolve())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "-rs", "-q", "--tb=short"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return {"exit": done.returncode, "output": (done.stdout + done.stderr).splitlines()[-150:]}


def time_all(options: argparse.Namespace) -> dict[str, Any]:
    """Time both bundles, and PyTorch in float16 beside the float16 one."""
    results: dict[str, Any] = {}
    for precision in ("fp16", "fp32"):
        bundle: Path | None = getattr(options, precision)
        if bundle is None:
            results[precision] = "no bundle given"
            continue
        with tempfile.TemporaryDirectory(prefix="cris-gpu-") as folder:
            copy = Path(shutil.copytree(bundle, Path(folder) / bundle.name))
            results[precision] = time_bundle(copy, precision, options)
    return results


def time_bundle(bundle: Path, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """All batches and numbers of expressions, graphs on and off, peers in the same rounds."""
    from cris_deploy.bundle.reading import Bundle
    from tests.gpu import timing

    engines, result = make_engines(bundle)
    if not engines:
        return result
    model = Bundle.open(bundle).manifest.model
    peers, result["peers"] = make_peers(model, precision, options)
    for batch in BATCHES:
        contestants = {n: timing.stages(e, timing.whole(batch)) for n, e in engines.items()}
        contestants |= {
            name: make(batch)
            for name, make in peers.items()
            if name != COMPILED or batch in options.compile
        }
        contest = timing.race(contestants, options.rounds, options.runs)
        result[f"batch {batch}"] = contest.report()
        medians = contest.report()["median_ms"]
        rates = {name: f"{1e3 * batch / value:.0f}/s" for name, value in medians.items()}
        print(f"{precision} batch {batch}: {rates} {contest.failures}", flush=True)
    for count in BATCHES:
        contestants = {n: timing.stages(e, timing.expressions(count)) for n, e in engines.items()}
        contest = timing.race(contestants, options.rounds, options.runs)
        result[f"expressions {count}"] = contest.report()
        print(f"{precision} expressions {count}: {contest.report()['median_ms']}", flush=True)
    result["segment, 640 x 480, host clock, ms"] = {
        name: timing.end_to_end(engine, 100) for name, engine in engines.items()
    }
    for engine in engines.values():
        engine.close()
    return result


def make_engines(bundle: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """An engine per backend, with CUDA graphs and without; why the others cannot be had."""
    from cris_deploy import Engine
    from cris_deploy.errors import CrisError
    from tests.gpu import conftest

    missing: dict[str, str] = {}
    conftest.build_plans(bundle)
    missing |= {f"{name} plans": reason for name, reason in conftest._UNBUILT.items()}
    engines = {}
    for backend in conftest.BACKENDS:
        for graphs in (True, False):
            name = f"{backend}, {'graphs' if graphs else 'no graphs'}"
            try:
                engines[name] = Engine(
                    bundle, backend=str(backend), device="cuda", cuda_graphs=graphs
                )
            except CrisError as error:
                missing[name] = str(error)
    return engines, {"missing": missing}


def make_peers(
    model: Any, precision: str, options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, str]]:
    """PyTorch, eager and compiled, with random weights of the same architecture."""
    from tests.gpu import open_clip_parts, timing

    try:
        import torch
    except ImportError:
        return {}, {"PyTorch": "not installed"}
    if not torch.cuda.is_available():
        return {}, {"PyTorch": "this PyTorch has no CUDA"}
    if problem := open_clip_parts.provide(options.open_clip):
        return {}, {"PyTorch": problem}
    from cris_train.model import Cris, CrisConfig

    makers = {"RN50": CrisConfig.rn50}
    if model.architecture not in makers:
        return {}, {"PyTorch": f"no peer for architecture {model.architecture}"}
    half = precision == "fp16"
    torch.manual_seed(0)
    net = Cris(makers[model.architecture]()).eval().requires_grad_(False).cuda()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def run(module: Any) -> Any:
        def forward(image: Any, tokens: Any) -> Any:
            # autocast is PyTorch's own way to float16 that keeps this model's numbers finite
            with torch.autocast("cuda", torch.float16, enabled=half):
                return module(image, tokens)

        return forward

    modules = {"PyTorch eager": run(net)}
    if half:
        modules["PyTorch eager, all half"] = net_in_half(net)
    if options.compile:
        modules[COMPILED] = torch.compile(run(net), mode="max-autotune", dynamic=False)

    def contestant(module: Any) -> Any:
        def make(batch: int) -> Any:
            side = model.input_size
            image = torch.randn(batch, 3, side, side, device="cuda")
            tokens = torch.randint(1, 49000, (batch, model.word_len), device="cuda")
            return timing.torch_module(module, image, tokens)

        return make

    return {name: contestant(module) for name, module in modules.items()}, {}


def net_in_half(net: Any) -> Any:
    """The model with float16 weights: faster than autocast, if its code allows it."""
    import copy

    half = copy.deepcopy(net).half()
    return lambda image, tokens: half(image.half(), tokens)


if __name__ == "__main__":
    sys.exit(main())
