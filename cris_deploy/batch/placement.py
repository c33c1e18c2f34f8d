"""How much of a machine or a cluster a worker of a job takes."""

from collections.abc import Mapping
from dataclasses import dataclass

from cris_deploy.errors import InputError


@dataclass(frozen=True, slots=True)
class Share:
    """Of one worker: threads of its engine, which are CPUs to Ray, and GPUs, also parts of one."""

    threads: int
    gpus: float


def share(
    workers: int,
    threads: int | None,
    gpus: float | None,
    have: Mapping[str, float],
    *,
    on_cpu: bool,
    may_grow: bool,
) -> Share:
    """Say what each worker gets.

    Args:
        workers: How many there are.
        threads: Of each; None for an equal share of the CPUs.
        gpus: Of each; None for one if there are any.
        have: What Ray has, as `ray.cluster_resources()` gives it.
        on_cpu: Whether the engines are asked to compute on the CPU.
        may_grow: Whether more may come: a cluster may start nodes, this machine does not.

    Raises:
        InputError: what is asked for will never be there, and Ray would wait for it.
    """
    if threads is None:
        threads = max(1, int(have.get("CPU", 1)) // workers)
    if gpus is None:
        gpus = 1.0 if have.get("GPU", 0) and not on_cpu else 0.0
    for kind, each, flag in (("CPU", threads, "threads"), ("GPU", gpus, "gpus")):
        if workers * each > have.get(kind, 0) and not may_grow:
            raise InputError(
                f"{workers} workers with {each:g} {kind} each do not fit into the "
                f"{have.get(kind, 0):g} that are here: give less with --workers or --{flag}"
            )
    return Share(threads, gpus)
