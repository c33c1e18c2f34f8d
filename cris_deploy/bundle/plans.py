"""TensorRT plans beside a bundle's portable part: which are trusted, and which fits here.

    engines/full.tensorrt-rtx.sm86-sm120.plan        what the runtime loads
    engines/full.tensorrt-rtx.sm86-sm120.plan.json   its sidecar: a PlanRecord
    engines/full.tensorrt-rtx.sm86-sm120.plan.log    what the builder said

A plan runs with one version of one runtime, on some GPUs, and gives the masks of one graph. All of
that is in the sidecar, so a plan that does not fit is refused with the reason, before a runtime
that would only say "no" sees it. TensorRT is not imported here.

A plan is code for a GPU, and loading one that a stranger made is running what he wrote. So only
those are taken that the bundle's manifest lists with their hashes, as cris-export does when it has
built them, unless the caller trusts whatever lies there.
"""

import dataclasses
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from cris_deploy.bundle.fields import Field
from cris_deploy.bundle.manifest import GraphName, PlanFile, Precision
from cris_deploy.bundle.reading import ENGINES, MANIFEST, WEIGHTS, Bundle
from cris_deploy.errors import BackendError, BundleError
from cris_deploy.files import write_atomically

FORMAT: Final = 1
"""Version of the sidecar's schema that this package writes, and the newest that it reads."""
SUFFIX: Final = ".plan"
SIDECAR: Final = ".json"

# A sidecar takes 2 KB; read no more of what may be anything.
_MOST_SIDECAR: Final = 2**20
_CAPABILITY = re.compile(r"sm[1-9]\d+")
_REBUILD = "build it again with cris-export build BUNDLE --engine ENGINE"


class RuntimeName(StrEnum):
    """Runtimes that load plans."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The shapes an input may have: `min` to `max` in every dimension, kernels chosen at `opt`."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a shape lies in the range."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """An optimisation profile: the range of each input."""

    inputs: Mapping[str, ShapeRange]


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """What a sidecar says of its plan. Hashes are SHA-256 in lower-case hexadecimal.

    file: name within `engines/`.
    version: of the runtime, exact.
    targets: compute capabilities ("sm86") it was built for; tensorrt's is that of `gpu`.
    gpu: name of the GPU it was built on; None for a plan that was built without one.
    graph_sha256, weights_sha256: the graph it was built from, and the weights beside that.
    profiles: in the order that the runtime numbers them.
    built: UTC, ISO 8601.
    layers, products: of the network it was built from, element type -> layers whose result has it,
        and the convolutions and matrix products among them; what was typed float16 shows here.
    kernels: of the plan itself, element type -> kernels that compute in it; {} if the builder did
        not list them.
    """

    file: str
    graph: GraphName
    runtime: RuntimeName
    version: str
    targets: tuple[str, ...]
    gpu: str | None
    graph_sha256: str
    weights_sha256: str
    precision: Precision
    profiles: tuple[Profile, ...]
    plan_sha256: str
    plan_bytes: int
    built: str
    build_seconds: float
    version_compatible: bool = False
    hardware_compatible: bool = False
    layers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    products: Mapping[str, int] = dataclasses.field(default_factory=dict)
    kernels: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Write as the text of a sidecar."""
        document = {"format": FORMAT, **dataclasses.asdict(self)}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "PlanRecord":
        """Read the text of a sidecar; BackendError names `where`, the field and the remedy."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BackendError(f"{where} is not valid JSON ({error}): {_REBUILD}") from None
        try:
            return _read_record(Field(document, where, "", _REBUILD))
        except BundleError as error:  # the bundle's portable part is not what is broken
            raise BackendError(str(error)) from None

    def profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """Give the number of the first profile that holds all inputs' shapes; None if none does."""
        for index, profile in enumerate(self.profiles):
            if all(held.holds(shapes[name]) for name, held in profile.inputs.items()):
                return index
        return None


@dataclass(frozen=True, slots=True)
class Host:
    """What a plan is to run on: runtime, its exact version, and the GPU.

    `compute_capability` is that of the GPU, such as "sm86"; `gpu` is the name its driver gives.
    """

    runtime: RuntimeName
    version: str
    compute_capability: str
    gpu: str


def folder(bundle: Bundle) -> Path:
    """Path of the plans of a bundle; it need not exist."""
    return bundle.path / ENGINES


def plan_name(graph: GraphName, runtime: RuntimeName, targets: tuple[str, ...]) -> str:
    """Name a plan's file: `<graph>.<runtime>.<targets>.plan`."""
    return f"{graph}.{runtime}.{'-'.join(targets)}{SUFFIX}"


def graph_hashes(bundle: Bundle, graph: GraphName) -> tuple[str, str]:
    """Give the SHA-256 of a graph and of the weights beside it, from the manifest."""
    files = bundle.manifest.files
    if WEIGHTS not in files:
        raise BundleError(f"bundle {bundle.path}: files does not list {WEIGHTS}: export it again")
    return files[bundle.manifest.graphs[graph].file].sha256, files[WEIGHTS].sha256


def read_plans(bundle: Bundle) -> tuple[PlanRecord, ...]:
    """Read all sidecars, listed or not, in the order of their names; () if no plan was ever built.

    A plan without a sidecar is none. Raises BackendError for a sidecar that cannot be read, has no
    plan beside it, or speaks of another file. Whether a plan is trusted, fits and is whole is
    checked where it is used: `choose_plan`, `read_plan`.
    """
    return tuple(record for record, _ in _read_sidecars(bundle))


def choose_plan(
    bundle: Bundle, graph: GraphName, host: Host, trust_plans: bool = False
) -> PlanRecord:
    """Choose the plan of a graph that fits runtime and GPU, the most specific if several do.

    Plans that the manifest does not list are passed over, unless `trust_plans`. Raises BackendError
    if there is none: it says what each plan at hand wants, what is here, and the remedy.
    """
    ours = [
        (record, sidecar)
        for record, sidecar in _read_sidecars(bundle)
        if record.graph is graph and record.runtime is host.runtime
    ]
    fitting, reasons, distrusted = [], [], False
    for record, sidecar in ours:
        reason = why_not(record, bundle, host)
        if reason is None and not trust_plans:
            reason = _why_not_listed(record, sidecar, bundle)
            distrusted = distrusted or reason is not None
        if reason is None:
            fitting.append(record)
        else:
            reasons.append(f"{record.file} {reason}")
    if fitting:
        return min(
            fitting,
            key=lambda r: (r.hardware_compatible, r.version_compatible, len(r.targets), r.file),
        )
    remedy = _rebuild(bundle, host.runtime, (host.compute_capability,))
    if distrusted:
        remedy += (
            ", or, if you trust who made it, take it with Engine(trust_plans=True) or --trust-plans"
        )
    here = f"{host.runtime} {host.version} on {host.gpu} ({host.compute_capability})"
    if not reasons:
        raise BackendError(f"bundle {bundle.path} has no {host.runtime} plan of {graph}: {remedy}")
    raise BackendError(f"no plan of {graph} fits {here}: {'; '.join(reasons)}: {remedy}")


def list_plans(bundle: Bundle, records: Iterable[PlanRecord]) -> None:
    """Write plans that were built into the manifest's listing, whole or not at all.

    Listed is what was built, not what lies there. Raises BundleError if the bundle's manifest is
    not the one that was opened, OSError if it cannot be written.
    """
    path = bundle.path / MANIFEST
    text = path.read_bytes()
    if hashlib.sha256(text).hexdigest() != bundle.manifest_sha256:
        raise BundleError(
            f"bundle {bundle.path} was changed while plans were built for it: build them again"
        )
    document = json.loads(text)
    listed = {
        name: plan
        for name, plan in (document.get("plans") or {}).items()
        if (folder(bundle) / name).exists()
    }
    for record in records:
        sidecar = hashlib.sha256(record.to_json().encode()).hexdigest()
        plan = PlanFile(record.plan_sha256, record.plan_bytes, sidecar)
        listed[record.file] = dataclasses.asdict(plan)
    document["plans"] = listed
    write_atomically(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def why_not(record: PlanRecord, bundle: Bundle, host: Host) -> str | None:
    """Say why a plan does not fit, as the end of a sentence about it; None if it fits."""
    if (record.graph_sha256, record.weights_sha256) != graph_hashes(bundle, record.graph):
        return "was built from another export of this bundle"
    if record.runtime is not host.runtime:
        return f"wants {record.runtime}, here is {host.runtime}"
    if not _version_fits(record, host):
        later = f" or a later {_majors(record)}" if record.version_compatible else ""
        return f"wants {record.runtime} {record.version}{later}, here is {host.version}"
    return _why_not_gpu(record, host)


def read_plan(bundle: Bundle, record: PlanRecord) -> bytes:
    """Read a plan and check that it is what was built.

    Raises BackendError if it is missing or changed, BundleError if the bundle was replaced.
    """
    path = folder(bundle) / record.file
    remedy = _rebuild(bundle, record.runtime, record.targets)
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


def rebuild_command(bundle: Bundle, record: PlanRecord) -> str:
    """Say how to build a plan again, as the end of an error message."""
    return _rebuild(bundle, record.runtime, record.targets)


def write_sidecar(directory: Path, record: PlanRecord) -> Path:
    """Write a record beside its plan, whole or not at all; OSError if that fails."""
    path = directory / (record.file + SIDECAR)
    write_atomically(path, record.to_json().encode())
    return path


def _read_sidecars(bundle: Bundle) -> list[tuple[PlanRecord, str]]:
    """All sidecars and their hashes."""
    try:
        paths = sorted(folder(bundle).glob(f"[!.]*{SUFFIX}{SIDECAR}"))
    except OSError as error:
        raise BackendError(f"{folder(bundle)} cannot be read ({error}): {_REBUILD}") from None
    records = []
    for path in paths:
        try:
            with path.open("rb") as stream:
                text = stream.read(_MOST_SIDECAR + 1)
        except OSError as error:
            raise BackendError(f"{path} cannot be read ({error}): {_REBUILD}") from None
        if len(text) > _MOST_SIDECAR:
            raise BackendError(f"{path} is longer than {_MOST_SIDECAR:,} bytes: {_REBUILD}")
        record = PlanRecord.from_json(text, str(path))
        expected = path.name.removesuffix(SIDECAR)
        if record.file != expected:
            raise BackendError(
                f"{path}: file is {record.file!r}, expected {expected!r}: do not rename plans; "
                + _rebuild(bundle, record.runtime, record.targets)
            )
        if not (path.parent / record.file).is_file():
            raise BackendError(
                f"{path} has no {record.file} beside it: copy that, remove the sidecar, or "
                + _rebuild(bundle, record.runtime, record.targets)
            )
        records.append((record, hashlib.sha256(text).hexdigest()))
    return records


def _why_not_listed(record: PlanRecord, sidecar: str, bundle: Bundle) -> str | None:
    listed = bundle.manifest.plans.get(record.file)
    if listed is None:
        return f"is not listed in {MANIFEST}, and a plan is code"
    if listed != PlanFile(record.plan_sha256, record.plan_bytes, sidecar):
        return f"is not the one that {MANIFEST} lists, and a plan is code"
    return None


def _version_fits(record: PlanRecord, host: Host) -> bool:
    if record.version == host.version:
        return True
    if not record.version_compatible or _numbers(host.version) < _numbers(record.version):
        return False
    return host.version.partition(".")[0] in _majors(record).split(" or ")


def _majors(record: PlanRecord) -> str:
    # Version-compatible plans run with later runtimes of their major version, and those of
    # TensorRT 10 with 11 (support matrix of TensorRT 11.4, "Engine Portability").
    major = record.version.partition(".")[0]
    return "10 or 11" if major == "10" else major


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _why_not_gpu(record: PlanRecord, host: Host) -> str | None:
    here = f"here is {host.gpu} ({host.compute_capability})"
    if record.hardware_compatible:
        # HardwareCompatibilityLevel.AMPERE_PLUS
        return None if _number(host.compute_capability) >= 80 else f"wants sm80 or newer, {here}"
    if host.compute_capability not in record.targets:
        return f"wants {' or '.join(record.targets)}, {here}"
    # TensorRT times kernels on the GPU at hand: another model, even of the same architecture, has
    # other resources. TensorRT-RTX leaves that to the machine that runs the plan.
    if record.runtime is RuntimeName.TENSORRT and record.gpu != host.gpu:
        return f"wants {record.gpu}, {here}"
    return None


def _number(capability: str) -> int:
    return int(capability.removeprefix("sm"))


def _rebuild(bundle: Bundle, runtime: RuntimeName, targets: tuple[str, ...]) -> str:
    command = f"cris-export build {shlex.quote(str(bundle.path))} --engine {runtime}"
    if runtime is RuntimeName.TENSORRT_RTX:
        command += f" --target {','.join(targets)}"
    return f"build it with {command}"


def _read_record(root: Field) -> PlanRecord:
    version = root["format"].integer(1)
    if version > FORMAT:
        raise BackendError(
            f"{root.where}: the sidecar has format {version}, this cris-deploy reads up to "
            f"{FORMAT}: upgrade cris-deploy (pip install -U cris-deploy), or {_REBUILD}"
        )

    def capability(field: Field) -> str:
        if not _CAPABILITY.fullmatch(field.text()):
            raise field.wrong("a compute capability such as sm86")
        return field.text()

    targets = root["targets"].each(capability)
    if not targets:
        raise root["targets"].wrong("at least one compute capability")
    profiles = root["profiles"].each(_read_profile)
    if not profiles:
        raise root["profiles"].wrong("at least one profile")
    name = root["file"].file_name()
    if "/" in name or not name.endswith(SUFFIX):
        raise root["file"].wrong(f"the name of a {SUFFIX} file without a folder")
    gpu = root["gpu"]
    return PlanRecord(
        file=name,
        graph=root["graph"].one_of(GraphName),
        runtime=root["runtime"].one_of(RuntimeName),
        version=root["version"].text(),
        targets=targets,
        gpu=None if gpu.value is None else gpu.text(),
        graph_sha256=root["graph_sha256"].sha256(),
        weights_sha256=root["weights_sha256"].sha256(),
        precision=root["precision"].one_of(Precision),
        profiles=profiles,
        plan_sha256=root["plan_sha256"].sha256(),
        plan_bytes=root["plan_bytes"].integer(1),
        built=root["built"].text(),
        build_seconds=root["build_seconds"].number(0, sys.float_info.max),
        version_compatible=root["version_compatible"].boolean(),
        hardware_compatible=root["hardware_compatible"].boolean(),
        layers={name: count.integer() for name, count in root["layers"].items()},
        products={name: count.integer() for name, count in root["products"].items()},
        kernels={name: count.integer() for name, count in root["kernels"].items()}
        if "kernels" in root.value
        else {},
    )


def _read_profile(profile: Field) -> Profile:
    def shape(field: Field) -> tuple[int, ...]:
        return field.each(lambda size: size.integer(1))

    inputs = {}
    for name, value in profile["inputs"].items():
        low, opt, high = (shape(value[key]) for key in ("min", "opt", "max"))
        ordered = len(low) == len(opt) == len(high) and all(
            a <= b <= c for a, b, c in zip(low, opt, high, strict=True)
        )
        if not ordered:
            raise value.wrong("min, opt and max of one length, in that order of size")
        inputs[name] = ShapeRange(low, opt, high)
    return Profile(inputs)
