"""Plans for the GPU that is here: built, loaded again, and chosen by their sidecars."""

from pathlib import Path

import pytest

from cris_deploy.bundle import plans
from cris_deploy.bundle.plans import Host, RuntimeName
from cris_deploy.bundle.reading import Bundle, GraphName
from cris_deploy.machine.gpu import survey_gpus
from cris_export.plans.build import build_plans
from cris_export.plans.options import PlanKind, PlanOptions

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    ("engine", "module"),
    [(PlanKind.TENSORRT, "tensorrt"), (PlanKind.TENSORRT_RTX, "tensorrt_rtx")],
)
def test_plans_for_the_gpu_at_hand(own_bundle: Path, engine: PlanKind, module: str) -> None:
    trt = pytest.importorskip(module, reason=f"{module} is not installed")
    survey = survey_gpus()
    if not survey.gpus:
        pytest.skip(f"{survey.problem}")
    gpu = survey.gpus[0]
    if engine is PlanKind.TENSORRT_RTX:
        known = {name.lower() for name in trt.ComputeCapability.__members__}
        if gpu.compute_capability not in known:
            pytest.skip(f"TensorRT-RTX does not know {gpu.name} ({gpu.compute_capability})")
    records = build_plans(own_bundle, PlanOptions(engine))
    assert [record.graph for record in records] == list(GraphName)
    bundle = Bundle.open(own_bundle)
    host = Host(RuntimeName(engine.value), trt.__version__, gpu.compute_capability, gpu.name)
    for record in records:
        assert plans.choose_plan(bundle, record.graph, host) == record
        # The builder has loaded it: only then are there layers to list.
        log = plans.folder(bundle) / (record.file + ".log")
        assert "[LAYERS]" in log.read_text()
