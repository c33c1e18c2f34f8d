"""Which plan fits a runtime, its version and a GPU, and why the others do not."""

import re
from dataclasses import dataclass

from cris_deploy.bundle.manifest import GraphName
from cris_deploy.bundle.plans.listing import why_not_listed
from cris_deploy.bundle.plans.record import PlanRecord, RuntimeName
from cris_deploy.bundle.plans.sidecars import build_command, graph_hashes, read_sidecars
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError


@dataclass(frozen=True, slots=True)
class Host:
    """What a plan is to run on: runtime, its exact version, and the GPU.

    `compute_capability` is that of the GPU, such as "sm86"; `gpu` is the name its driver gives.
    """

    runtime: RuntimeName
    version: str
    compute_capability: str
    gpu: str


def choose_plan(
    bundle: Bundle, graph: GraphName, host: Host, trust_plans: bool = False
) -> PlanRecord:
    """Choose the plan of a graph that fits runtime and GPU, the most specific if several do.

    Plans that the manifest does not list are passed over, unless `trust_plans`. Raises BackendError
    if there is none: it says what each plan at hand wants, what is here, and the remedy.
    """
    ours = [
        (record, sidecar)
        for record, sidecar in read_sidecars(bundle)
        if record.graph is graph and record.runtime is host.runtime
    ]
    fitting, reasons, distrusted = [], [], False
    for record, sidecar in ours:
        reason = why_not(record, bundle, host)
        if reason is None and not trust_plans:
            reason = why_not_listed(record, sidecar, bundle)
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
    remedy = build_command(bundle, host.runtime, (host.compute_capability,))
    if distrusted:
        remedy += (
            ", or, if you trust who made it, take it with Engine(trust_plans=True) or --trust-plans"
        )
    here = f"{host.runtime} {host.version} on {host.gpu} ({host.compute_capability})"
    if not reasons:
        raise BackendError(f"bundle {bundle.path} has no {host.runtime} plan of {graph}: {remedy}")
    raise BackendError(f"no plan of {graph} fits {here}: {'; '.join(reasons)}: {remedy}")


def why_not(record: PlanRecord, bundle: Bundle, host: Host) -> str | None:
    """Say why a plan of the host's runtime does not fit, as the end of a sentence about it.

    None if it fits.
    """
    if (record.graph_sha256, record.weights_sha256) != graph_hashes(bundle, record.graph):
        return "was built from another export of this bundle"
    if not _version_fits(record, host):
        later = f" or a later {_majors(record)}" if record.version_compatible else ""
        return f"wants {record.runtime} {record.version}{later}, here is {host.version}"
    return _why_not_gpu(record, host)


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
