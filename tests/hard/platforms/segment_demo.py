"""Segments the samples of a bundle, with what an installed wheel brings and nothing else.

    python -I segment_demo.py BUNDLE MASKS

Run by Pythons that do not see this source tree. MASKS gets the masks, by their number, as .npz;
stdout says in one line what ran.
"""

import importlib.util
import platform
import sys

import numpy as np

import cris_deploy
from cris_deploy import Engine
from cris_deploy.bundle.reading import Bundle
from cris_deploy.pixels.mask import KernelsBuild, kernels_status

bundle = Bundle.open(sys.argv[1])
assert importlib.util.find_spec("torch") is None, "torch is installed here"
assert "site-packages" in cris_deploy.__file__, cris_deploy.__file__
status = kernels_status()
assert status.build is KernelsBuild.BUILT, status
with Engine(sys.argv[1], backend="onnxruntime", device="cpu") as engine:
    masks = [
        engine.segment(bundle.sample_image(sample), sample.expression).mask
        for sample in bundle.manifest.samples
    ]
    ran = engine.info.choice
np.savez(sys.argv[2], *masks)
print(
    f"Python {platform.python_version()} on {platform.machine()}, {ran.backend} {ran.version}, "
    f"kernels {status.simd}, NumPy {np.__version__}: {len(masks)} masks"
)
