"""Plans for a bundle, built and put beside the graphs."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cris_deploy.bundle import plans
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.bundle.plans import PlanRecord, RuntimeName
from cris_deploy.bundle.reading import Bundle
from cris_deploy.files import write_atomically
from cris_export.errors import ExportError
from cris_export.plans.builder import Built, Source, build_plan
from cris_export.plans.choose import Builder, choose_builder
from cris_export.plans.options import PlanOptions
from cris_export.plans.watch import BuildLog, TimingCache
from cris_export.sign import Signer, refuse_signed
from cris_export.write import lock

_PARTIAL = ".partial"
_LOG = ".log"
_FAILED = ".failed.log"


def build_plans(
    bundle: Path,
    options: PlanOptions,
    step: Callable[[str], None] = lambda _: None,
    signer: Signer | None = None,
) -> tuple[PlanRecord, ...]:
    """Build a plan of each graph of a bundle, put them into its `engines/`, list their hashes.

    They appear together, after the last was built: a build that fails or is killed leaves the
    bundle as it was. Plans of the same names are replaced, others stay. The manifest lists them
    last: until then nothing takes them.

    Args:
        bundle: A complete bundle.
        options: What to build.
        step: Called with a short line before each plan and every few seconds of a long build.
        signer: Signs the manifest that lists them; a signed bundle is not changed without.

    Returns:
        What the sidecars say; () if `auto` or `none` builds nothing.

    Raises:
        BundleError: the bundle is not whole, or was replaced meanwhile.
        InputError, BackendError: as `choose_builder` does; InputError for a signed bundle, too.
        ExportError: a build failed; the builder's log was kept and is named.
    """
    opened = Bundle.open(bundle)
    chosen = choose_builder(options, step)
    if chosen is None:
        return ()
    refuse_signed(opened.path, signer)
    step(f"building {chosen}")
    cache = None
    if chosen.runtime is RuntimeName.TENSORRT:
        cache = TimingCache(options.timing_cache, step)
    with _staging(plans.folder(opened)) as staging:
        records = tuple(
            _build(opened, graph, chosen, options, cache, staging, step) for graph in GraphName
        )
        for record in records:
            _publish(staging, record)
        with _writing(opened.path):
            plans.list_plans(opened, records)
        if signer is not None:
            signer.sign(opened.path)
    if cache is not None:
        cache.store()
    return records


def _build(
    bundle: Bundle,
    graph: GraphName,
    chosen: Builder,
    options: PlanOptions,
    cache: TimingCache | None,
    staging: Path,
    step: Callable[[str], None],
) -> PlanRecord:
    """Build one plan into the staging folder, with its sidecar and log."""
    name = plans.plan_name(graph, chosen.runtime, chosen.targets)
    manifest = bundle.manifest
    source = Source(bundle.graph(graph), graph, manifest.graphs[graph], manifest.precision)
    log = BuildLog()
    step(f"building {name}")
    start = time.perf_counter()
    try:
        built = build_plan(chosen, source, options, log, cache, step)
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
        runtime=chosen.runtime,
        version=chosen.version,
        targets=chosen.targets,
        gpu=None if chosen.gpu is None else chosen.gpu.name,
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
    held = _lock(folder)
    staging = folder / f".{secrets.token_hex(4)}{_PARTIAL}"
    try:
        if held is not None:
            for leftover in folder.glob(f".*{_PARTIAL}"):
                shutil.rmtree(leftover, ignore_errors=True)
        with _writing(folder):
            staging.mkdir()
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if held is not None:
            os.close(held)
        if made:
            with contextlib.suppress(OSError):  # not empty: it holds plans, or a failed build's log
                folder.rmdir()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(f"{folder} cannot be written: {error}") from None


def _lock(folder: Path) -> int | None:
    """Lock the folder; None on a file system without locks, where leftovers have to stay."""
    try:
        return lock(folder)
    except BlockingIOError:
        raise ExportError(f"another cris-export builds plans in {folder}: wait for it") from None
    except OSError:
        return None


def _publish(staging: Path, record: PlanRecord) -> None:
    """Move a plan to its name. Without a sidecar it counts as none, so that comes last."""
    folder = staging.parent
    with _writing(folder):
        (folder / (record.file + plans.SIDECAR)).unlink(missing_ok=True)
        (folder / (record.file + _FAILED)).unlink(missing_ok=True)
        for name in (record.file, record.file + _LOG, record.file + plans.SIDECAR):
            (staging / name).rename(folder / name)
