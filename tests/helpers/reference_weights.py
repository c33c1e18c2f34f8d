"""Full-size weights that every machine makes alike, for the golden cases.

The golden logits and masks in `data/golden_rn50.npz` are what the reference implementation gives
for these weights. Values come from numpy's frozen `RandomState`, one stream per parameter name;
scales keep activations of order one, and `data/calibration.json` centres the last features, so that
masks cover part of an image.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).parents[1] / "data"


def reference_state(architecture: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Parameter name -> value, for "rn50" or "rn101"."""
    shapes = json.loads((DATA / f"state_dict_{architecture}.json").read_text())
    state = {name: _value(name, shape, seed) for name, shape in shapes.items()}
    calibration = json.loads((DATA / "calibration.json").read_text())[architecture]
    mean = np.asarray(calibration["mean_feature"], np.float32)
    state["proj.vis.4.bias"] = -state["proj.vis.4.weight"][:, :, 0, 0] @ mean
    state["proj.txt.weight"] *= np.float32(calibration["text_gain"])
    state["proj.txt.bias"] = np.zeros_like(state["proj.txt.bias"])
    state["proj.txt.bias"][-1] = calibration["offset"]
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def write_reference_checkpoint(path: Path, architecture: str, seed: int = 0) -> Path:
    """A file as the reference's training loop leaves it: no configuration in it."""
    state = reference_state(architecture, seed)
    torch.save({"epoch": 50, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    return path


def _value(name: str, shape: list[int], seed: int) -> np.ndarray:
    random = np.random.RandomState((zlib.crc32(name.encode()) + 1_000_003 * seed) % 2**32)
    kind = name.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return np.int64(1000)
    if kind == "logit_scale":
        return np.float32(math.log(100.0))
    if kind == "running_mean":
        value = 0.1 * random.randn(*shape)
    elif kind == "running_var":
        value = random.uniform(0.6, 1.4, shape)
    elif len(shape) == 1 and kind == "weight":
        # The last norm of a residual branch is kept small, so that depth does not add up.
        residual = ".bn3." in name or "downsample" in name
        value = (0.4 if residual else 1.0) * random.uniform(0.7, 1.3, shape)
    elif len(shape) == 1:
        value = 0.05 * random.randn(*shape)
    else:
        value = _gain(name, shape) * random.randn(*shape)
    return value.astype(np.float32)


def _gain(name: str, shape: list[int]) -> float:
    if len(shape) == 4:
        return math.sqrt(2.0 / math.prod(shape[1:]))
    if "embedding" in name:
        return 0.5 if "token" in name else 0.1
    fan_in = shape[0] if name.endswith("text_projection") else shape[1]
    return 1.0 / math.sqrt(fan_in)
