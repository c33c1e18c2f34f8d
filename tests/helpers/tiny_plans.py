"""Plans that are not real ones, with their sidecars, for the small bundle of the tests."""

import dataclasses
import hashlib
from typing import Any

from cris_deploy.bundle import plans
from cris_deploy.bundle.plans import Host, PlanRecord, Profile, RuntimeName, ShapeRange
from cris_deploy.bundle.reading import Bundle, GraphName, Precision

RTX, TRT = RuntimeName.TENSORRT_RTX, RuntimeName.TENSORRT
PLAN = b"not a real plan, but bytes with a hash"
HOST = Host(RTX, "1.7.1.116", "sm86", "NVIDIA GeForce RTX 3090")


def add_plan(bundle: Bundle, listed: bool = True, **changes: Any) -> PlanRecord:
    """Write a plan of the full graph with its sidecar, and list it in the manifest."""
    graph = changes.get("graph", GraphName.FULL)
    graph_sha256, weights_sha256 = plans.graph_hashes(bundle, graph)
    record = PlanRecord(
        file=plans.plan_name(
            graph, changes.get("runtime", RTX), changes.get("targets", ("sm86", "sm120"))
        ),
        graph=graph,
        runtime=RTX,
        version="1.7.1.116",
        targets=("sm86", "sm120"),
        gpu=None,
        graph_sha256=graph_sha256,
        weights_sha256=weights_sha256,
        precision=Precision.FP32,
        profiles=(
            Profile({"image": ShapeRange((1, 3, 64, 64), (1, 3, 64, 64), (8, 3, 64, 64))}),
            Profile({"image": ShapeRange((1, 3, 64, 64), (9, 3, 64, 64), (16, 3, 64, 64))}),
        ),
        plan_sha256=hashlib.sha256(PLAN).hexdigest(),
        plan_bytes=len(PLAN),
        built="2026-11-22T00:00:00+00:00",
        build_seconds=1.25,
        version_compatible=False,
        hardware_compatible=False,
        layers={"float32": 3},
        products={"float32": 1},
    )
    record = dataclasses.replace(record, **changes)
    folder = plans.folder(bundle)
    folder.mkdir(exist_ok=True)
    (folder / record.file).write_bytes(PLAN)
    plans.write_sidecar(folder, record)
    if listed:
        plans.list_plans(Bundle.open(bundle.path), [record])
    return record


def add_trt(bundle: Bundle, **changes: Any) -> PlanRecord:
    settings = {
        "runtime": TRT,
        "version": "10.13.2.6",
        "targets": ("sm90",),
        "gpu": "NVIDIA H100 80GB HBM3",
    }
    return add_plan(bundle, **{**settings, **changes})


def listed(bundle: Bundle) -> Bundle:
    """Open it again: what was listed since is in its manifest."""
    return Bundle.open(bundle.path)
