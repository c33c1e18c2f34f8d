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

from cris_deploy.bundle.plans.choice import Host, choose_plan, why_not
from cris_deploy.bundle.plans.listing import list_plans
from cris_deploy.bundle.plans.record import (
    SIDECAR,
    PlanRecord,
    Profile,
    RuntimeName,
    ShapeRange,
    plan_name,
)
from cris_deploy.bundle.plans.sidecars import (
    folder,
    graph_hashes,
    read_plan,
    read_plans,
    rebuild_command,
    write_sidecar,
)

__all__ = [
    "SIDECAR",
    "Host",
    "PlanRecord",
    "Profile",
    "RuntimeName",
    "ShapeRange",
    "choose_plan",
    "folder",
    "graph_hashes",
    "list_plans",
    "plan_name",
    "read_plan",
    "read_plans",
    "rebuild_command",
    "why_not",
    "write_sidecar",
]
