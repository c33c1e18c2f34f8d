"""Plans and their sidecars on disk, in the folder of the bundle that is theirs."""

import hashlib
import os
import shlex
from pathlib import Path
from typing import Final

from cris_deploy.bundle.manifest import GraphName
from cris_deploy.bundle.plans.record import REBUILD, SIDECAR, SUFFIX, PlanRecord, RuntimeName
from cris_deploy.bundle.reading import ENGINES, WEIGHTS, Bundle
from cris_deploy.errors import BackendError
from cris_deploy.files import write_atomically

# A sidecar takes 2 KB; read no more of what may be anything.
_MOST_SIDECAR: Final = 2**20


def folder(bundle: Bundle) -> Path:
    """Path of the plans of a bundle; it need not exist."""
    return bundle.path / ENGINES


def graph_hashes(bundle: Bundle, graph: GraphName) -> tuple[str, str]:
    """Give the SHA-256 of a graph and of the weights beside it, from the manifest."""
    files = bundle.manifest.files
    return files[bundle.manifest.graphs[graph].file].sha256, files[WEIGHTS].sha256


def read_plans(bundle: Bundle) -> tuple[PlanRecord, ...]:
    """Read all sidecars, listed or not, in the order of their names; () if no plan was ever built.

    A plan without a sidecar is none. Raises BackendError for a sidecar that cannot be read, has no
    plan beside it, or speaks of another file. Whether a plan is trusted, fits and is whole is
    checked where it is used: `choose_plan`, `read_plan`.
    """
    return tuple(record for record, _ in read_sidecars(bundle))


def read_plan(bundle: Bundle, record: PlanRecord) -> bytes:
    """Read a plan and check that it is what was built.

    Raises BackendError if it is missing or changed, BundleError if the bundle was replaced.
    """
    path = folder(bundle) / record.file
    remedy = build_command(bundle, record.runtime, record.targets)
    problem = None
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            plan = stream.read(record.plan_bytes) if size == record.plan_bytes else b""
    except OSError as error:
        problem = f"cannot be read ({error})"
    else:
        if size != record.plan_bytes:
            problem = f"is damaged: {size:,} bytes instead of {record.plan_bytes:,}"
        elif hashlib.sha256(plan).hexdigest() != record.plan_sha256:
            problem = "is damaged: its SHA-256 is not its sidecar's"
    if problem is not None:
        bundle.require_unchanged([record.graph])
        raise BackendError(f"{path} {problem}: {remedy}")
    return plan


def write_sidecar(directory: Path, record: PlanRecord) -> Path:
    """Write a record beside its plan, whole or not at all; OSError if that fails."""
    path = directory / (record.file + SIDECAR)
    write_atomically(path, record.to_json().encode())
    return path


def read_sidecars(bundle: Bundle) -> list[tuple[PlanRecord, str]]:
    """Read all sidecars as `read_plans` does, each with its SHA-256."""
    try:
        paths = sorted(folder(bundle).glob(f"[!.]*{SUFFIX}{SIDECAR}"))
    except OSError as error:
        raise BackendError(f"{folder(bundle)} cannot be read ({error}): {REBUILD}") from None
    records = []
    for path in paths:
        try:
            with path.open("rb") as stream:
                text = stream.read(_MOST_SIDECAR + 1)
        except OSError as error:
            raise BackendError(f"{path} cannot be read ({error}): {REBUILD}") from None
        if len(text) > _MOST_SIDECAR:
            raise BackendError(f"{path} is longer than {_MOST_SIDECAR:,} bytes: {REBUILD}")
        record = PlanRecord.from_json(text, str(path))
        expected = path.name.removesuffix(SIDECAR)
        if record.file != expected:
            raise BackendError(
                f"{path}: file is {record.file!r}, expected {expected!r}: do not rename plans; "
                + build_command(bundle, record.runtime, record.targets)
            )
        if not (path.parent / record.file).is_file():
            raise BackendError(
                f"{path} has no {record.file} beside it: copy that, remove the sidecar, or "
                + build_command(bundle, record.runtime, record.targets)
            )
        records.append((record, hashlib.sha256(text).hexdigest()))
    return records


def rebuild_command(bundle: Bundle, record: PlanRecord) -> str:
    """Say how to build a plan again, as the end of an error message."""
    return build_command(bundle, record.runtime, record.targets)


def build_command(bundle: Bundle, runtime: RuntimeName, targets: tuple[str, ...]) -> str:
    """Say how to build plans of a bundle, as the end of an error message."""
    command = f"cris-export build {shlex.quote(str(bundle.path))} --engine {runtime}"
    if runtime is RuntimeName.TENSORRT_RTX:
        command += f" --target {','.join(targets)}"
    return f"build it with {command}"
