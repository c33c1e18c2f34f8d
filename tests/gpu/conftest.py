"""What a GPU machine has, and bundles to run on it. Nothing here is imported without one."""

import os
import shutil
from pathlib import Path

import pytest

from cris_deploy import Engine
from cris_deploy.errors import CrisError
from cris_deploy.execution.backends import BackendName, status
from cris_deploy.machine import gpu
from tests.helpers.tiny_bundle import write_bundle

BUNDLE_VARIABLE = "CRIS_GPU_BUNDLE"
"""Path of an exported bundle to test beside the hand-built one; it is copied, not changed."""

BACKENDS = (BackendName.TENSORRT, BackendName.TENSORRT_RTX, BackendName.ONNXRUNTIME)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    survey = gpu.survey_gpus()
    if survey.gpus:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"no CUDA device: {survey.problem}"))


@pytest.fixture(scope="session", params=["tiny", "exported"])
def gpu_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with plans of every builder that is installed."""
    folder = tmp_path_factory.mktemp("gpu")
    if request.param == "tiny":
        path = write_bundle(folder / "tiny.bundle")
    elif os.environ.get(BUNDLE_VARIABLE):
        path = Path(shutil.copytree(os.environ[BUNDLE_VARIABLE], folder / "exported.bundle"))
    else:
        pytest.skip(f"{BUNDLE_VARIABLE} is not set")
    build_plans(path)
    return path


@pytest.fixture(scope="session", params=BACKENDS, ids=str)
def backend(request: pytest.FixtureRequest) -> BackendName:
    """A backend that is installed and can compute on CUDA."""
    name: BackendName = request.param
    found = status(name)
    if found.version is None:
        pytest.skip(f"{name} is not installed")
    if "cuda" not in found.devices:
        pytest.skip(f"{name} {found.version} as installed has no CUDA")
    return name


@pytest.fixture(scope="session")
def make_engine(gpu_bundle: Path, backend: BackendName):
    """Make engines on the GPU; a builder that cannot serve this GPU skips, with its reason."""
    if backend is not BackendName.ONNXRUNTIME and backend in _UNBUILT:
        pytest.skip(f"no plans: {_UNBUILT[backend]}")

    def make(**options: object) -> Engine:
        return Engine(gpu_bundle, backend=backend, device="cuda", **options)

    return make


_UNBUILT: dict[BackendName, str] = {}


def build_plans(bundle: Path) -> None:
    """Build what can be built here; remember why the rest cannot."""
    try:
        from cris_export.plans.build import build_plans as build
        from cris_export.plans.options import PlanKind, PlanOptions
    except ImportError as error:
        _UNBUILT.update(dict.fromkeys(BACKENDS, f"cris_export cannot be imported: {error}"))
        return
    for name, kind in (
        (BackendName.TENSORRT, PlanKind.TENSORRT),
        (BackendName.TENSORRT_RTX, PlanKind.TENSORRT_RTX),
    ):
        try:
            # RTX builds for what it is told of; a GPU it does not know is its own refusal.
            targets = (gpu.survey_gpus().gpus[0].compute_capability,)
            rtx = kind is PlanKind.TENSORRT_RTX
            build(bundle, PlanOptions(kind, targets if rtx else ()))
        except CrisError as error:
            _UNBUILT[name] = str(error)
