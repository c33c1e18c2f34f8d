"""Arguments of the mask step where the extension is not built: refused as the extension does."""

from typing import Any

import numpy as np
import pytest

from cris_deploy.errors import InputError
from cris_deploy.pixels import mask


@pytest.fixture(autouse=True)
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask, "load_kernels", lambda: None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logits": np.zeros((1, 8, 8))}, "logits are float64"),
        ({"logits": np.zeros((2, 8, 8), np.float32)}, "2 maps of logits, 1 sizes"),
        ({"logits": np.zeros((1, 0, 8), np.float32)}, "each side must be 1 to 4096"),
        ({"logits": np.zeros((1, 1, 4097), np.float32)}, "each side must be 1 to 4096"),
        ({"input_size": 2**20}, "input_size is 1048576: it must be 1 to 4096"),
        ({"thresholds": float("nan")}, "a threshold is a probability"),
        ({"out": []}, "out has 0 arrays for 1 images"),
        ({"out": [np.zeros((8, 10), bool)] * 2}, "out has 2 arrays for 1 images"),
        ({"out": [b"x"]}, r"out has another kind of array: give bool \(8, 10\)"),
        ({"out": [np.zeros((10, 8), bool)]}, "out has another kind of array"),
        ({"out": [np.zeros((10, 8), bool).T]}, "out must be C-contiguous and writeable"),
    ],
)
def test_what_is_refused(changed: dict[str, Any], message: str) -> None:
    valid = {"logits": np.full((1, 8, 8), 9, np.float32), "sizes": [(8, 10)], "input_size": 32}
    arguments = {**valid, "thresholds": 0.5, **changed}
    with pytest.raises(InputError, match=message):
        mask.upsample_masks(**arguments)


def test_a_mask_is_written_into_what_is_given() -> None:
    out = np.zeros((8, 10), np.bool_)
    (found,) = mask.upsample_masks(np.full((1, 8, 8), 9, np.float32), [(8, 10)], 32, 0.5, out=[out])
    assert found.mask is out
    assert found.area == out.sum() > 70
