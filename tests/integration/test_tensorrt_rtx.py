"""NVIDIA's own parser and builder accept the exported graphs, typed float16, without a GPU.

TensorRT-RTX builds for architectures it is told of; running a plan needs a device and is not tested
here.
"""

import numpy as np
import pytest
import torch

from cris_deploy.bundle import Bundle, GraphName, Precision
from cris_export.export import ExportOptions, export
from cris_train import checkpoint
from cris_train.model import Cris, CrisConfig
from tests.models import randomised

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("rtx")
    path = checkpoint.save(folder / "tiny.pth", randomised(Cris(CrisConfig.tiny())))
    report = export(ExportOptions(path, precision=Precision.FP16, min_iou=0.9))
    return Bundle.open(report.bundle)


@pytest.mark.parametrize("name", list(GraphName))
def test_builds_strongly_typed_for_two_architectures(bundle: Bundle, name: GraphName) -> None:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse_from_file(str(bundle.graph(name)))
    assert parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)]

    config = builder.create_builder_config()
    architectures = (trt.ComputeCapability.SM86, trt.ComputeCapability.SM120)
    config.num_compute_capabilities = len(architectures)
    for index, architecture in enumerate(architectures):
        config.set_compute_capability(architecture, index)
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for value in inputs:
        shapes = [[size if dim == -1 else dim for dim in value.shape] for size in (1, 2, 8)]
        profile.set_shape(value.name, *shapes)
    config.add_optimization_profile(profile)

    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 0
    types = {value.name: np.dtype(trt.nptype(value.dtype)).name for value in inputs}
    assert types == {spec.name: spec.dtype for spec in bundle.manifest.graphs[name].inputs}
