"""Fixtures for all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.tiny_bundle import write_bundle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Full-size models first: no worker is left with minutes of them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("full_size") is None)


@pytest.fixture(scope="session", autouse=True)
def _compiled_graphs_of_tests_stay_theirs(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["CRIS_DEPLOY_CACHE"] = str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small valid bundle; shared, so not to be changed."""
    return write_bundle(tmp_path_factory.mktemp("tiny") / "tiny.bundle")


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the small bundle that the test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "own.bundle"))


@pytest.fixture(scope="session")
def traced_once() -> Iterator[None]:
    """From here on no model is traced a second time; what follows the tracing is done each time."""
    from cris_export.graph import trace  # takes seconds to import
    from tests.helpers.tracing import TracedOnce

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace, "trace_stages", TracedOnce())
        yield
