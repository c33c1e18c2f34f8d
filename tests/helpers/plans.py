"""Plans that the stand-in of TensorRT runs, written beside a bundle without a builder."""

import hashlib
import json
from pathlib import Path

from cris_deploy.bundle.manifest import GraphName
from cris_deploy.bundle.plans import (
    PlanRecord,
    Profile,
    RuntimeName,
    ShapeRange,
    folder,
    graph_hashes,
    list_plans,
    plan_name,
    write_sidecar,
)
from cris_deploy.bundle.reading import Bundle
from tests.stand_ins.fake_tensorrt import GPU, VERSION


def write_plans(
    path: Path,
    runtime: RuntimeName = RuntimeName.TENSORRT,
    version: str = VERSION,
    targets: tuple[str, ...] = ("sm86",),
    gpu: str | None = GPU,
    most: int = 8,
    version_compatible: bool = False,
) -> None:
    """Give a bundle plans of all its graphs, for batches up to `most`."""
    bundle = Bundle.open(path)
    records = []
    folder(bundle).mkdir(exist_ok=True)
    for name in GraphName:
        spec = bundle.manifest.graphs[name]
        profiles = [_profile(spec.inputs, most)]
        if name is GraphName.MASK_DECODER:
            profiles.insert(0, _profile(spec.inputs, most, one_image=True))
        short = [{n: (r.min, r.max) for n, r in p.inputs.items()} for p in profiles]
        content = {
            "onnx": str(bundle.graph(name)),
            "profiles": short,
            "host_code": version_compatible,  # its lean runtime
        }
        plan = json.dumps(content).encode()
        file = plan_name(name, runtime, targets)
        (folder(bundle) / file).write_bytes(plan)
        graph_sha256, weights_sha256 = graph_hashes(bundle, name)
        record = PlanRecord(
            file=file,
            graph=name,
            runtime=runtime,
            version=version,
            targets=targets,
            gpu=gpu,
            graph_sha256=graph_sha256,
            weights_sha256=weights_sha256,
            precision=bundle.manifest.precision,
            profiles=tuple(profiles),
            plan_sha256=hashlib.sha256(plan).hexdigest(),
            plan_bytes=len(plan),
            built="2026-11-22T00:00:00Z",
            build_seconds=1.0,
            version_compatible=version_compatible,
            hardware_compatible=False,
            layers={},
            products={},
        )
        write_sidecar(folder(bundle), record)
        records.append(record)
    list_plans(bundle, records)


def _profile(inputs, most: int, one_image: bool = False) -> Profile:
    def shapes(spec) -> ShapeRange:
        top = 1 if one_image and spec.shape[0] == "images" else most
        return ShapeRange(*((rows, *spec.shape[1:]) for rows in (1, top, top)))

    return Profile({spec.name: shapes(spec) for spec in inputs})
