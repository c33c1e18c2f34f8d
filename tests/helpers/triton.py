"""A real Triton server for tests, or a skip that says why there is none."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cris_bench.ways.triton_server import TritonServer, triton_server, why_not
from cris_deploy.serving.triton import ModelSettings
from cris_export.triton.options import RepositoryOptions, StageKind
from cris_export.triton.repository import write_repository

VENV = Path(__file__).parents[2] / ".venv-triton"
SMALL = ModelSettings(backend="onnxruntime", threads=1, max_expressions=8)


def repository(
    bundle: Path, folder: Path, stages: StageKind = StageKind.NONE, instances: int = 1
) -> Path:
    """A repository whose engine is ONNX Runtime on one thread."""
    options = RepositoryOptions(stages, instances=instances, settings=SMALL)
    write_repository(bundle, folder, options)
    return folder


@contextmanager
def serving(models: Path, log: Path, model: str = "cris") -> Iterator[TritonServer]:
    """A server of one model, and what it needs, which takes its config as it is written."""
    if (reason := why_not(VENV)) is not None:
        pytest.skip(reason)
    options = (
        "--model-control-mode=explicit",
        f"--load-model={model}",
        "--disable-auto-complete-config",
    )
    with triton_server(models, *options, venv=VENV, log=log) as running:
        yield running
