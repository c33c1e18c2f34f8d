"""Scenes that several files learn from."""

from pathlib import Path

import pytest

from cris_train.synthetic.refer_files import write_scenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures to learn from and two to measure on; a file may have its own."""
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, {"train": 4, "val": 2}, seed=1)
    return out
