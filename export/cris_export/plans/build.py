"""Plans for a bundle: which engine, for which GPUs, built and put beside the graphs."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType

from cris_deploy.bundle import plans
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.bundle.plans import PlanRecord, RuntimeName
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError, InputError
from cris_deploy.files import write_atomically
from cris_deploy.machine.gpu import Gpu, Survey, survey_gpus
from cris_export.errors import ExportError
from cris_export.plans import builder as tensorrt_builder
from cris_export.plans.builder import Built, Settings, Source
from cris_export.plans.watch import BuildLog, TimingCache

_PARTIAL = ".partial"
_LOG = ".log"
_FAILED = ".failed.log"
_MIB = 2**20


class EngineKind(StrEnum):
    """What `--engine` takes."""

    AUTO = "auto"
    NONE = "none"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


@dataclass(frozen=True)
class EngineOptions:
    """Which plans to build.

    Attributes:
        engine: The builder; `auto` takes the one for the GPU that is present.
        targets: Compute capabilities such as "sm86" that TensorRT-RTX builds for, GPU or none.
        max_batch: Most images, or pairs of image and expression, in one run.
        max_expressions: Most expressions on one image in one run.
        version_compatible: Plans for later versions, too (TensorRT).
        hardware_compatible: Plans for all GPUs from Ampere on, somewhat slower (TensorRT).
        timing_cache: File of kernel timings to read and to extend (TensorRT).
        workspace_mib: Most scratch memory of a layer in MiB; None leaves it to the builder.
    """

    engine: EngineKind = EngineKind.AUTO
    targets: tuple[str, ...] = ()
    max_batch: int = 8
    max_expressions: int = 32
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: Path | None = None
    workspace_mib: int | None = None

    def __post_init__(self) -> None:
        for flag, value in (
            ("--max-batch", self.max_batch),
            ("--max-expressions", self.max_expressions),
            ("--workspace", self.workspace_mib),
        ):
            if value is not None and value < 1:
                raise InputError(f"{flag} must be at least 1, not {value}")
        for target in self.targets:
            if not re.fullmatch(r"sm[1-9]\d+", target):
                raise InputError(
                    f"--target {target!r}: give compute capabilities such as sm86,sm120"
                )
            if self.targets.count(target) > 1:
                raise InputError(f"--target names {target} twice: name it once")
        flags = ", ".join(("--target",) * bool(self.targets) + self.tensorrt_flags)
        if self.engine is EngineKind.NONE and flags:
            raise InputError(f"{flags}: --engine none builds nothing; drop one or the other")

    @property
    def named(self) -> bool:
        """True if plans were asked for, not merely those that fit this machine."""
        return self.engine is not EngineKind.AUTO or bool(self.targets or self.tensorrt_flags)

    @property
    def tensorrt_flags(self) -> tuple[str, ...]:
        """The given flags that only `tensorrt` can follow."""
        given = (
            ("--version-compatible", self.version_compatible),
            ("--hardware-compatible", self.hardware_compatible),
            ("--timing-cache", self.timing_cache is not None),
        )
        return tuple(flag for flag, value in given if value)


@dataclass(frozen=True)
class Choice:
    """The engine to build with.

    Attributes:
        runtime: Its name.
        module: `tensorrt` or `tensorrt_rtx`.
        targets: Compute capabilities, ascending.
        gpu: The GPU that kernels are timed on; None where none is needed.
        runs_here: Whether the first GPU here can run the plans.
    """

    runtime: RuntimeName
    module: ModuleType
    targets: tuple[str, ...]
    gpu: Gpu | None
    runs_here: bool

    @property
    def version(self) -> str:
        """Exact version of the runtime."""
        return str(self.module.__version__)


def choose_engine(options: EngineOptions, step: Callable[[str], None]) -> Choice | None:
    """Choose builder and GPUs; None if no plan is to be built, and `step` says why.

    Cheap, so it can be asked before an export starts.

    Raises:
        InputError: the builder cannot do what a flag asks.
        BackendError: what was asked for by name cannot be had here.
    """
    if options.engine is EngineKind.NONE:
        return None
    survey = survey_gpus()
    if options.engine is EngineKind.TENSORRT:
        return _choose_tensorrt(options, survey)
    if options.engine is EngineKind.TENSORRT_RTX:
        return _choose_rtx(options, survey)
    return _choose_auto(options, survey, step)


def build_engines(
    bundle: Path, options: EngineOptions, step: Callable[[str], None] = lambda _: None
) -> tuple[PlanRecord, ...]:
    """Build a plan of each graph of a bundle, put them into its `engines/`, list their hashes.

    They appear together, after the last was built: a build that fails or is killed leaves the
    bundle as it was. Plans of the same names are replaced, others stay. The manifest lists them
    last: until then nothing takes them.

    Args:
        bundle: A complete bundle.
        options: What to build.
        step: Called with a short line before each plan and every few seconds of a long build.

    Returns:
        What the sidecars say; () if `auto` or `none` builds nothing.

    Raises:
        BundleError: the bundle is not whole, or was replaced meanwhile.
        InputError, BackendError: as `choose_engine` does.
        ExportError: a build failed; the builder's log was kept and is named.
    """
    opened = Bundle.open(bundle)
    choice = choose_engine(options, step)
    if choice is None:
        return ()
    step(_announcement(choice))
    cache = None
    if choice.runtime is RuntimeName.TENSORRT:
        cache = TimingCache(options.timing_cache, step)
    with _staging(plans.folder(opened)) as staging:
        records = tuple(
            _build(opened, graph, choice, options, cache, staging, step) for graph in GraphName
        )
        for record in records:
            _publish(staging, record)
        with _writing(opened.path):
            plans.list_plans(opened, records)
    if cache is not None:
        cache.store()
    return records


def _choose_tensorrt(options: EngineOptions, survey: Survey) -> Choice:
    module = tensorrt_builder.import_runtime(RuntimeName.TENSORRT)
    if not survey.gpus:
        raise BackendError(
            f"--engine tensorrt needs the GPU it builds for, and {survey.problem}: run it on the "
            "machine that will serve, or name GPUs to --engine tensorrt-rtx with --target"
        )
    gpu = survey.gpus[0]
    here = (gpu.compute_capability,)
    if options.targets and options.targets != here:
        raise InputError(
            f"--target {','.join(options.targets)}: --engine tensorrt builds for the GPU at hand, "
            f"{gpu.name} ({here[0]}): drop --target, or take --hardware-compatible instead, or "
            "--engine tensorrt-rtx"
        )
    if options.hardware_compatible and int(here[0][2:]) < 80:
        raise InputError(
            f"--hardware-compatible starts with Ampere (sm80), here is {gpu.name} ({here[0]}): "
            "drop it"
        )
    return Choice(RuntimeName.TENSORRT, module, here, gpu, runs_here=True)


def _choose_rtx(options: EngineOptions, survey: Survey) -> Choice:
    module = tensorrt_builder.import_runtime(RuntimeName.TENSORRT_RTX)
    if options.tensorrt_flags:
        raise InputError(
            f"{', '.join(options.tensorrt_flags)}: only --engine tensorrt has that. TensorRT-RTX "
            "plans run with the release that built them, on the GPUs that --target names, and no "
            "kernel is timed to build them"
        )
    supported = tensorrt_builder.supported_targets(module)
    listed = ", ".join(supported)
    for target in options.targets:
        if target not in supported:
            raise InputError(
                f"--target {target}: TensorRT-RTX {module.__version__} builds for {listed}; for "
                "other GPUs run --engine tensorrt on them"
            )
    gpu = survey.gpus[0] if survey.gpus else None
    if options.targets:
        targets = tuple(sorted(options.targets, key=lambda target: int(target[2:])))
    elif gpu is None:
        raise InputError(
            f"--engine tensorrt-rtx: {survey.problem}, so name the GPUs to build for with "
            f"--target, some of {listed}"
        )
    elif gpu.compute_capability not in supported:
        raise BackendError(
            f"--engine tensorrt-rtx: version {module.__version__} builds for {listed}, here is "
            f"{gpu.name} ({gpu.compute_capability}): take --engine tensorrt"
        )
    else:
        targets = (gpu.compute_capability,)
    runs_here = gpu is not None and gpu.compute_capability in targets
    return Choice(RuntimeName.TENSORRT_RTX, module, targets, None, runs_here)


def _choose_auto(
    options: EngineOptions, survey: Survey, step: Callable[[str], None]
) -> Choice | None:
    gpu = survey.gpus[0] if survey.gpus else None
    if gpu is None and not options.targets:
        if options.tensorrt_flags:
            raise BackendError(
                f"{', '.join(options.tensorrt_flags)}: only --engine tensorrt has that, it needs "
                f"the GPU it builds for, and {survey.problem}: run it on the machine that will "
                "serve, or drop the flag"
            )
        step(
            f"no engine is built: {survey.problem}, and no --target names GPUs to build for with "
            "TensorRT-RTX"
        )
        return None
    if options.targets and (gpu is None or options.targets != (gpu.compute_capability,)):
        return _choose_rtx(options, survey)
    try:
        return _choose_tensorrt(options, survey)
    except BackendError as error:
        if options.tensorrt_flags:
            raise
        missing = error
    try:
        return _choose_rtx(options, survey)
    except BackendError as error:
        if options.targets:
            raise
        assert gpu is not None
        step(f"no engine is built for {gpu.name} ({gpu.compute_capability}): {missing}; {error}")
        return None


def _announcement(choice: Choice) -> str:
    what = f"building {choice.runtime} {choice.version} plans for {', '.join(choice.targets)}"
    return what if choice.gpu is None else f"{what} on {choice.gpu.name}"


def _build(
    bundle: Bundle,
    graph: GraphName,
    choice: Choice,
    options: EngineOptions,
    cache: TimingCache | None,
    staging: Path,
    step: Callable[[str], None],
) -> PlanRecord:
    """Build one plan into the staging folder, with its sidecar and log."""
    name = plans.plan_name(graph, choice.runtime, choice.targets)
    settings = Settings(
        max_batch=options.max_batch,
        max_expressions=options.max_expressions,
        targets=choice.targets if choice.runtime is RuntimeName.TENSORRT_RTX else (),
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        workspace_bytes=options.workspace_mib and options.workspace_mib * _MIB,
        runs_here=choice.runs_here,
    )
    manifest = bundle.manifest
    source = Source(bundle.graph(graph), graph, manifest.graphs[graph], manifest.precision)
    log = BuildLog()
    step(f"building {name}")
    start = time.perf_counter()
    try:
        built = tensorrt_builder.build_plan(choice.module, source, settings, log, cache, step)
    except ExportError as error:
        kept = staging.parent / (name + _FAILED)
        with _writing(staging.parent):
            kept.write_text(log.text(verbose=True), encoding="utf-8")
        raise ExportError(f"{error}; the builder's log is {kept}") from None
    seconds = time.perf_counter() - start
    graph_sha256, weights_sha256 = plans.graph_hashes(bundle, graph)
    record = PlanRecord(
        file=name,
        graph=graph,
        runtime=choice.runtime,
        version=choice.version,
        targets=choice.targets,
        gpu=None if choice.gpu is None else choice.gpu.name,
        graph_sha256=graph_sha256,
        weights_sha256=weights_sha256,
        precision=manifest.precision,
        profiles=built.profiles,
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        plan_bytes=built.plan.nbytes,
        built=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        build_seconds=round(seconds, 3),
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        layers=built.types.layers,
        products=built.types.products,
        kernels=built.kernels,
    )
    with _writing(staging.parent):
        write_atomically(staging / name, built.plan)
        (staging / (name + _LOG)).write_text(log.text(verbose=False), encoding="utf-8")
        plans.write_sidecar(staging, record)
    step(_summary(graph, built, seconds))
    return record


def _summary(graph: GraphName, built: Built, seconds: float) -> str:
    types = ", ".join(f"{count} {dtype}" for dtype, count in built.types.products.items())
    products = f", products {types}" if types else ""
    total = sum(built.kernels.values())
    shares = ", ".join(f"{count / total:.0%} {dtype}" for dtype, count in built.kernels.items())
    kernels = f", kernels {shares}" if shares else ""
    return f"{graph}: {built.plan.nbytes / 1e6:.1f} MB in {seconds:.1f} s{products}{kernels}"


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """A folder for unfinished plans, gone in the end; what killed builds left is cleared first."""
    made = not folder.exists()
    with _writing(folder):
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    staging = folder / f".{secrets.token_hex(4)}{_PARTIAL}"
    try:
        if _alone(lock, folder):
            for leftover in folder.glob(f".*{_PARTIAL}"):
                shutil.rmtree(leftover, ignore_errors=True)
        with _writing(folder):
            staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)
        if made:
            with contextlib.suppress(OSError):  # not empty: it holds plans, or a failed build's log
                folder.rmdir()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(f"{folder} cannot be written: {error}") from None


def _alone(descriptor: int, folder: Path) -> bool:
    """Lock the folder; False on a file system without locks, where leftovers have to stay."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ExportError(f"another cris-export builds plans in {folder}: wait for it") from None
    except OSError:
        return False
    return True


def _publish(staging: Path, record: PlanRecord) -> None:
    """Move a plan to its name. Without a sidecar it counts as none, so that comes last."""
    folder = staging.parent
    with _writing(folder):
        (folder / (record.file + plans.SIDECAR)).unlink(missing_ok=True)
        (folder / (record.file + _FAILED)).unlink(missing_ok=True)
        for name in (record.file, record.file + _LOG, record.file + plans.SIDECAR):
            (staging / name).rename(folder / name)
