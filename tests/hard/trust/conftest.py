"""A pair of keys, another's, a bundle that the first has signed, and what it answers."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cris_deploy import Engine
from cris_export.sign import Signer, sign_bundle, write_keys
from tests.helpers.signing import PICTURE, Keys, segmented

pytest.importorskip("minisign", reason="the extra sign is not installed")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "other"):
        write_keys(folder / name, None)
    return Keys(folder / "ours", folder / "ours.pub", folder / "other", folder / "other.pub")


@pytest.fixture
def signed(own_bundle: Path, keys: Keys) -> Path:
    """A bundle of this test's own, signed by our key."""
    sign_bundle(own_bundle, Signer(keys.secret, pytest.fail))
    return own_bundle


@pytest.fixture(scope="session")
def golden(tiny_bundle: Path) -> NDArray[np.bool_]:
    """The mask of `PICTURE` by the bundle that nobody signed or touched."""
    with Engine(tiny_bundle, backend="onnxruntime", threads=1) as engine:
        mask = segmented(engine)
    assert mask.shape == PICTURE.shape[:2]
    assert mask.any()
    assert not mask.all()
    return mask
