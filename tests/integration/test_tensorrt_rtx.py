"""NVIDIA's own parser and builder make plans of exported bundles, without a GPU.

TensorRT-RTX builds for architectures it is told of. Loading and running a plan needs a device and
is not tested here; what can be read of a plan without one is.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from cris_deploy import Engine
from cris_deploy.bundle import plans
from cris_deploy.bundle.manifest import NumberType
from cris_deploy.bundle.plans import Host, PlanRecord, RuntimeName
from cris_deploy.bundle.reading import Bundle, GraphName, Precision
from cris_deploy.errors import BackendError, InputError
from cris_export.errors import ExportError
from cris_export.export import export
from cris_export.options import ExportOptions
from cris_export.plans.build import build_plans
from cris_export.plans.builder import Built, Source, build_plan, check_plan
from cris_export.plans.choose import Builder, supported_targets
from cris_export.plans.options import NO_PLANS, PlanKind, PlanOptions
from cris_export.plans.types import TypeCount, type_name
from cris_export.plans.watch import BuildLog, make_logger
from cris_train import checkpoint
from cris_train.model import Cris, CrisConfig
from tests.helpers.models import randomised

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

RTX = PlanOptions(PlanKind.TENSORRT_RTX, targets=("sm120", "sm86"))
HERE = Builder(RuntimeName.TENSORRT_RTX, trt, ("sm86",), None, runs_here=False)
FEW = PlanOptions(max_batch=2, max_expressions=4)


@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("rtx")
    return checkpoint.save(folder / "tiny.pth", randomised(Cris(CrisConfig.tiny())))


def exported(checkpoint_file: Path, precision: Precision, plans: PlanOptions = NO_PLANS) -> Bundle:
    output = checkpoint_file.parent / f"{precision}.bundle"
    options = ExportOptions(checkpoint_file, output, precision=precision, min_iou=0.9, plans=plans)
    return Bundle.open(export(options).bundle)


@pytest.fixture(scope="module")
def half(checkpoint_file: Path) -> Bundle:
    return exported(checkpoint_file, Precision.FP16)


@pytest.fixture(scope="module")
def single(checkpoint_file: Path) -> Bundle:
    return exported(checkpoint_file, Precision.FP32, plans=RTX)


@pytest.fixture(scope="module")
def half_plans(half: Bundle) -> dict[GraphName, PlanRecord]:
    return {record.graph: record for record in build_plans(half.path, RTX)}


@pytest.fixture(scope="module")
def single_plans(single: Bundle) -> dict[GraphName, PlanRecord]:
    return {record.graph: record for record in plans.read_plans(single)}


def quantised(checkpoint_file: Path, *, half: bool) -> Bundle:
    output = checkpoint_file.parent / f"int8-{half}.bundle"
    demo = Path(__file__).parents[2] / "train/demo/samples.jsonl"
    options = ExportOptions(
        checkpoint_file,
        output,
        precision=Precision.INT8,
        half=half,
        samples=demo,
        calibration=demo,
        min_iou=0.0,  # the logits are held against each other below
    )
    return Bundle.open(export(options).bundle)


@pytest.fixture(scope="module")
def integers(checkpoint_file: Path) -> Bundle:
    """int8 with float32 between."""
    return quantised(checkpoint_file, half=False)


@pytest.fixture(scope="module")
def integers_and_half(checkpoint_file: Path) -> Bundle:
    """int8 with float16 between."""
    return quantised(checkpoint_file, half=True)


def source(bundle: Bundle, graph: GraphName) -> Source:
    manifest = bundle.manifest
    return Source(bundle.graph(graph), graph, manifest.graphs[graph], manifest.precision)


@pytest.mark.parametrize("graph", list(GraphName))
def test_every_graph_has_a_plan_for_both_architectures(
    half: Bundle, half_plans: dict[GraphName, PlanRecord], graph: GraphName
) -> None:
    record, half = half_plans[graph], Bundle.open(half.path)  # whose manifest lists them now
    assert record.file == f"{graph}.tensorrt-rtx.sm86-sm120.plan"
    for capability in ("sm86", "sm120"):
        host = Host(RuntimeName.TENSORRT_RTX, trt.__version__, capability, "an RTX card")
        assert plans.choose_plan(half, graph, host) == record
    plan = plans.read_plan(half, record)
    assert len(plan) == record.plan_bytes > 100_000  # kernels and weights, not a stub
    log = plans.folder(half) / (record.file + ".log")
    assert "Engine generation completed" in log.read_text()


def test_an_export_lists_the_plans_it_builds(
    single: Bundle, single_plans: dict[GraphName, PlanRecord]
) -> None:
    assert single.manifest.plans.keys() == {record.file for record in single_plans.values()}
    assert single.manifest.parity is not None  # which was written later
    host = Host(RuntimeName.TENSORRT_RTX, trt.__version__, "sm86", "an RTX card")
    for graph in GraphName:
        assert plans.choose_plan(single, graph, host) == single_plans[graph]


def test_other_hosts_are_told_what_the_plans_want(
    half: Bundle, half_plans: dict[GraphName, PlanRecord]
) -> None:
    host = Host(RuntimeName.TENSORRT_RTX, trt.__version__, "sm89", "an RTX 4090")
    with pytest.raises(BackendError, match="wants sm86 or sm120, here is an RTX 4090") as error:
        plans.choose_plan(half, GraphName.FULL, host)
    assert f"build {half.path} --engine tensorrt-rtx --target sm89" in str(error.value)


@pytest.mark.parametrize("graph", list(GraphName))
def test_the_network_computes_in_the_stored_type(
    half_plans: dict[GraphName, PlanRecord],
    single_plans: dict[GraphName, PlanRecord],
    graph: GraphName,
) -> None:
    of_half, of_single = half_plans[graph], single_plans[graph]
    assert set(of_single.products) == {"float32"}
    total = of_single.products["float32"]
    assert sum(of_half.products.values()) == total > 0
    # Islands of float32 are few, and hardly any of them is a product.
    assert of_half.products["float16"] >= 0.9 * total
    assert of_half.layers["float16"] > of_half.layers.get("float32", 0)
    assert "float16" not in of_single.layers


@pytest.mark.parametrize("graph", list(GraphName))
def test_the_plan_computes_in_the_stored_type(
    half_plans: dict[GraphName, PlanRecord],
    single_plans: dict[GraphName, PlanRecord],
    graph: GraphName,
) -> None:
    # The network is what was asked for; this is what the builder made of it, from its own list.
    of_half, of_single = half_plans[graph].kernels, single_plans[graph].kernels
    assert set(of_single) == {"float32"}
    # A kernel of a norm hands its mean to the next in float32.
    assert of_half["float16"] >= 0.9 * sum(of_half.values()) > 0


def test_half_between_integers_is_in_graph_and_manifest(
    integers: Bundle, integers_and_half: Bundle
) -> None:
    for bundle, other, none in (
        (integers, NumberType.FLOAT32, NumberType.FLOAT16),
        (integers_and_half, NumberType.FLOAT16, NumberType.FLOAT32),
    ):
        assert bundle.manifest.precision is Precision.INT8
        for share in bundle.manifest.types.values():
            assert share.nodes[other] > 0.7 * sum(share.nodes.values())
            assert share.nodes.get(none, 0) <= 0.01 * sum(share.nodes.values())
    mine, theirs = (
        bundle.manifest.types[GraphName.FULL].multiply_adds
        for bundle in (integers_and_half, integers)
    )
    assert mine[NumberType.INT8] == theirs[NumberType.INT8]  # no layer is lost to it


def test_half_between_integers_gives_the_same_logits(
    integers: Bundle, integers_and_half: Bundle
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    logits = []
    for bundle in (integers, integers_and_half):
        with Engine(bundle.path, backend="onnxruntime", device="cpu", threads=1) as engine:
            logits.append(engine.segment(image, "the purple cross").logits)
    # A value on the edge between two integers may fall to either side.
    assert np.corrcoef(logits[0].ravel(), logits[1].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("graph", list(GraphName))
def test_plans_have_half_between_integers(
    mixed_plans: dict[GraphName, PlanRecord], graph: GraphName
) -> None:
    record = mixed_plans[graph]
    assert record.targets == ("sm86", "sm120")
    kernels, total = record.kernels, sum(record.kernels.values())
    # Only kernels of norms hand a mean or a deviation on in float32.
    assert kernels.get("float32", 0) <= max(2, 0.1 * total)
    assert kernels["float16"] > 0
    if graph is not GraphName.TEXT_ENCODER:  # whose inputs are not rounded
        assert kernels["int8"] >= 0.4 * total


@pytest.fixture(scope="module")
def mixed_plans(integers_and_half: Bundle) -> dict[GraphName, PlanRecord]:
    return {record.graph: record for record in build_plans(integers_and_half.path, RTX)}


def test_weights_of_a_half_plan_take_half(
    half_plans: dict[GraphName, PlanRecord], single_plans: dict[GraphName, PlanRecord]
) -> None:
    # A plan holds little beside weights and kernels; half of the tiny model's weights is more than
    # the kernels of the two vary by. A plan that went float32 silently would not be smaller.
    saved = single_plans[GraphName.FULL].plan_bytes - half_plans[GraphName.FULL].plan_bytes
    parameters = sum(p.numel() for p in Cris(CrisConfig.tiny()).parameters())
    assert saved > 0.8 * 2 * parameters


def test_only_what_is_no_plan_is_malformed(
    half: Bundle, half_plans: dict[GraphName, PlanRecord]
) -> None:
    """Without a driver TensorRT-RTX reads a plan's header and no more: hashes find the rest."""
    record = half_plans[GraphName.TEXT_ENCODER]
    plan = plans.read_plan(half, record)
    for content, whole in ((plan, True), (plan[::-1], False)):
        log = BuildLog()
        built = Built(memoryview(content), record.profiles, TypeCount({}, {}), {})
        arguments = (
            HERE,
            make_logger(trt, log),
            built,
            source(half, record.graph),
            FEW,
            log,
        )
        if whole:
            check_plan(*arguments)
        else:
            with pytest.raises(ExportError, match="does not know the plan of text_encoder"):
                check_plan(*arguments)


def test_targets_come_from_the_installed_module(half: Bundle) -> None:
    supported = supported_targets(trt)
    assert {"sm86", "sm89", "sm120"} <= set(supported)
    for target in ("sm90", "sm999"):
        assert target not in supported
        options = PlanOptions(PlanKind.TENSORRT_RTX, targets=("sm86", target))
        with pytest.raises(InputError, match=f"--target {target}: .* {', '.join(supported)}"):
            build_plans(half.path, options)


def test_a_graph_that_is_none_is_refused_by_the_parser(half: Bundle, tmp_path: Path) -> None:
    broken = tmp_path / "full.onnx"
    broken.write_bytes(half.graph(GraphName.FULL).read_bytes()[:5000])
    spec = half.manifest.graphs[GraphName.FULL]
    wrong = Source(broken, GraphName.FULL, spec, Precision.FP16)
    log = BuildLog()
    with pytest.raises(ExportError, match="tensorrt_rtx cannot parse full"):
        build_plan(HERE, wrong, FEW, log, None, lambda _: None)


def test_a_graph_with_another_face_than_the_manifest_says_is_refused(
    half: Bundle, single: Bundle
) -> None:
    name = GraphName.MASK_DECODER
    wrong = Source(single.graph(name), name, half.manifest.graphs[name], half.manifest.precision)
    with pytest.raises(ExportError, match="reads mask_decoder with inputs"):
        build_plan(HERE, wrong, FEW, BuildLog(), None, lambda _: None)


def test_a_float32_graph_in_an_fp16_bundle_is_refused(single: Bundle) -> None:
    name = GraphName.IMAGE_ENCODER
    wrong = Source(single.graph(name), name, single.manifest.graphs[name], Precision.FP16)
    with pytest.raises(ExportError, match="image_encoder of an fp16 bundle has no float16 product"):
        build_plan(HERE, wrong, FEW, BuildLog(), None, lambda _: None)


def test_a_build_ends_at_the_next_step_once_stopped(
    half: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cris_export.plans.watch.PROGRESS_SECONDS", 0.0)
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        assert threading.current_thread() is not threading.main_thread()
        raise BrokenPipeError("nobody reads")

    log = BuildLog()
    with pytest.raises(BrokenPipeError):
        build_plan(HERE, source(half, GraphName.TEXT_ENCODER), FEW, log, None, stop)
    assert len(said) == 1
    assert "canceled" in log.errors()


def test_a_damaged_plan_is_found_by_its_hash(half: Bundle) -> None:
    record = build_plans(half.path, PlanOptions(PlanKind.TENSORRT_RTX, ("sm89",)))[0]
    path = plans.folder(half) / record.file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BackendError, match=r"is damaged: its SHA-256 .* --target sm89"):
        plans.read_plan(half, record)


def test_polygraphy_reads_the_same_network(
    half: Bundle, half_plans: dict[GraphName, PlanRecord]
) -> None:
    """A second loader, strongly typed too, finds the layers that the sidecar tells of."""
    pytest.importorskip("polygraphy", reason="Polygraphy is not installed")
    code = """
import sys
from polygraphy.backend.trt import network_from_onnx_path
from cris_export.plans.options import NO_PLANS, PlanKind, PlanOptions
from cris_export.plans.types import count_types
_, network, _ = network_from_onnx_path(sys.argv[1], strongly_typed=True)
types = count_types(network)
print(dict(types.layers), dict(types.products), sep="|")
"""
    name = GraphName.MASK_DECODER
    # Which TensorRT it takes is settled when it is first imported: hence a process of its own.
    result = subprocess.run(
        [sys.executable, "-c", code, str(half.graph(name))],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    record = half_plans[name]
    assert result.stdout.splitlines()[-1] == f"{dict(record.layers)}|{dict(record.products)}"


def test_types_of_inputs_are_those_of_the_manifest(half: Bundle) -> None:
    """The names that the builder gives to element types are numpy's."""
    for dtype in (trt.float32, trt.float16, trt.int64, trt.bool):
        assert type_name(dtype) == np.dtype(trt.nptype(dtype)).name
