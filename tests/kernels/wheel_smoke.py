"""An installed wheel is whole: run by a Python that does not see this source tree."""

import importlib.util
import sys
from importlib import metadata, resources

import numpy as np

import cris_deploy
from cris_deploy.pixels.mask import KernelsBuild, kernels_status, mask_from_logits

status = kernels_status()
assert status.build is KernelsBuild.BUILT, status
mask = mask_from_logits(np.full((26, 26), 5, np.float32), 50, 60, 104, 0.35)
assert mask.shape == (50, 60)
assert mask[10:-10, 10:-10].all()
assert "torch" not in sys.modules
assert resources.files("cris_deploy").joinpath("py.typed").is_file()
for package in ("cris_export", "cris_train", "cris_bench"):
    assert importlib.util.find_spec(package) is not None, package
samples = resources.files("cris_export").joinpath("proof/samples_data/samples.jsonl")
assert samples.is_file()
commands = {entry.name for entry in metadata.distribution("cris-deploy").entry_points}
assert {"cris-export", "cris-bench", "cris-segment", "cris-info"} <= commands
print(cris_deploy.__version__, cris_deploy.__file__)
