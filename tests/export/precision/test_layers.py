"""Graphs compared layer by layer, and float16 decided on a real model's stages."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from cris_deploy.bundle.manifest import GraphName
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.graph import trace
from cris_export.graph.stages import build_stages
from cris_export.graph.tokenizer import write_tokenizer
from cris_export.graph.weights import WeightFile
from cris_export.precision import layers
from cris_export.precision.emulate import emulate_float16
from cris_export.precision.float16 import to_float16
from cris_export.precision.islands import NO_ISLANDS, Islands, find_islands
from cris_export.precision.layers import LayerError, compare_layers, worst_layer
from cris_export.precision.ranges import open_session
from cris_export.precision.rules import RuleName
from cris_export.precision.shares import type_share
from cris_export.proof.float32 import Reference, graph_file, measure_stages, write_reference
from cris_export.proof.samples import read_samples
from cris_export.tables import describe_types
from cris_train.model import Cris, CrisConfig
from tests.helpers.models import randomised

F32 = TensorProto.FLOAT
node = helper.make_node
RNG = np.random.default_rng(0)
WEIGHTS = {f"w{i}": RNG.normal(size=(8, 8)).astype(np.float32) / 3 for i in range(3)}


def chain(weights: dict[str, np.ndarray], middle: list[onnx.NodeProto] | None = None):
    """Three products with a cut-off between them; `middle` may replace the second product."""
    nodes = [
        node("MatMul", ["x", "w0"], ["a"], "first"),
        node("Relu", ["a"], ["b"], "cut"),
        *(middle or [node("MatMul", ["b", "w1"], ["c"], "second")]),
        node("MatMul", ["c", "w2"], ["y"], "third"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", F32, ["batch", 8])],
        [helper.make_tensor_value_info("y", F32, ["batch", 8])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def saved(folder: Path, name: str, proto: onnx.ModelProto) -> Path:
    onnx.save(proto, folder / name)
    return folder / name


FEEDS = [
    {"x": np.random.default_rng(seed).normal(size=(4, 8)).astype(np.float32)} for seed in (1, 2)
]


def compare(folder: Path, other: onnx.ModelProto) -> dict[str, LayerError]:
    reference = saved(folder, "reference.onnx", chain(WEIGHTS))
    return {
        layer.node: layer
        for layer in compare_layers(reference, saved(folder, "other.onnx", other), FEEDS)
    }


def test_equal_graphs_have_no_error(tmp_path: Path) -> None:
    compared = compare(tmp_path, chain(WEIGHTS))
    assert list(compared) == ["first", "cut", "second", "third"]
    assert {layer.error for layer in compared.values()} == {0.0}


def test_the_layer_that_went_wrong_is_the_worst(tmp_path: Path) -> None:
    compared = compare(tmp_path, chain(WEIGHTS | {"w1": WEIGHTS["w1"] * 1.1}))
    assert compared["cut"].error == 0
    assert compared["second"].error == pytest.approx(0.1, rel=1e-4)
    assert compared["second"].brought_in == 0
    # The third has the same error, and it did not make it.
    assert compared["third"].error == pytest.approx(0.1, rel=1e-4)
    worst = max(compared.values(), key=lambda layer: layer.added)
    assert worst.node == "second"
    assert str(worst).startswith("MatMul second of chain: relative error 0.1, its inputs 0")


def test_overflow_is_an_infinite_error_of_who_made_it(tmp_path: Path) -> None:
    compared = compare(tmp_path, chain(WEIGHTS | {"w1": WEIGHTS["w1"] * np.float32(np.inf)}))
    assert np.isinf(compared["second"].added)
    assert compared["third"].added == 0


def test_names_that_the_other_graph_has_not_are_looked_through(tmp_path: Path) -> None:
    """Quantisation puts nodes in between; values it leaves out bring in what went into them."""
    wrong = WEIGHTS | {"w0": WEIGHTS["w0"] * 1.1}
    other = chain(
        wrong, [node("MatMul", ["b", "w1"], ["renamed"]), node("Relu", ["renamed"], ["q"])]
    )
    other.graph.node[-1].input[0] = "q"
    compared = compare(tmp_path, other)
    assert list(compared) == ["first", "cut", "third"]
    assert compared["third"].brought_in == pytest.approx(0.1, rel=1e-4)


def test_int8_pairs_are_compared(tmp_path: Path) -> None:
    step = np.array(0.02, np.float32)
    pair = [
        node("QuantizeLinear", ["b", "step"], ["bq"]),
        node("DequantizeLinear", ["bq", "step"], ["bdq"]),
        node("MatMul", ["bdq", "w1"], ["c"], "second"),
    ]
    compared = compare(tmp_path, chain(WEIGHTS | {"step": step}, pair))
    assert compared["cut"].error == 0
    assert 1e-3 < compared["second"].error < 0.1  # steps of 0.02 in values of order one
    assert compared["second"].brought_in == 0


def test_parts_give_what_the_whole_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = chain(WEIGHTS | {"w0": WEIGHTS["w0"] * 1.1})
    whole = compare(tmp_path, other)
    monkeypatch.setattr(layers, "CHUNK_BYTES", 1)
    assert compare(tmp_path, other) == whole


def test_masked_scores_do_not_hide_an_error(tmp_path: Path) -> None:
    """Norms over -30000 are large; what a softmax hears of a row is not."""

    def softmax(scale: float) -> onnx.ModelProto:
        graph = helper.make_graph(
            [
                node("Mul", ["x", "scale"], ["scores"], "scores"),
                node("Add", ["scores", "mask"], ["masked"], "masked"),
                node("Softmax", ["masked"], ["y"], "softmax"),
            ],
            "masked",
            [helper.make_tensor_value_info("x", F32, [4, 8])],
            [helper.make_tensor_value_info("y", F32, [4, 8])],
            [
                numpy_helper.from_array(np.array(scale, np.float32), "scale"),
                numpy_helper.from_array(np.float32([0] * 6 + [-30000] * 2), "mask"),
            ],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    paths = [saved(tmp_path, f"{s}.onnx", softmax(s)) for s in (1.0, 1.01)]
    by_name = {layer.node: layer for layer in compare_layers(*paths, FEEDS)}
    assert by_name["scores"].error == pytest.approx(0.01, rel=1e-3)
    assert by_name["masked"].error == pytest.approx(0.01, rel=1e-3)


# From here on: the stages of a tiny model, on the packaged samples.


def traced_reference(model: Cris, folder: Path) -> tuple[dict[str, ir.Model], Reference]:
    traced = trace.trace_stages(build_stages(model), model.config, trace.DEFAULT_OPSET)
    write_tokenizer(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json", model.config.word_len)
    size = model.config.input_size
    return traced, write_reference(folder / "float32", traced, read_samples(None), tokenizer, size)


def typed_stages(reference: Reference, islands: dict[str, Islands], folder: Path) -> Path:
    folder.mkdir()
    with WeightFile(folder) as weights:
        for stage in reference.feeds:
            graph = ir.load(reference.graph(stage))
            to_float16(graph, islands[stage], keep=frozenset({"image", "logits"}))
            weights.externalise(graph)
            path = saved(folder, f"{stage}.onnx", ir.to_proto(graph))
            onnx.checker.check_model(path, full_check=True)
    return folder


def logits_error(reference: Reference, folder: Path) -> float:
    """Largest difference of the logits in true float16 arithmetic, stage by stage."""
    differences = []
    for index in range(2):
        given = dict(reference.feeds[GraphName.MASK_DECODER][index])
        sessions = [
            open_session(emulate_float16(onnx.load(path, load_external_data=False)), path.parent)
            for path in (
                reference.graph(GraphName.MASK_DECODER),
                graph_file(folder, GraphName.MASK_DECODER),
            )
        ]
        exact, mine = (session.run(None, given)[0] for session in sessions)
        differences.append(np.abs(exact - mine))
    return float(np.max(differences))  # NaN if there is one


def tiny(change: Callable[[Cris], None] = lambda model: None) -> Cris:
    torch.manual_seed(0)
    model = randomised(Cris(CrisConfig.tiny(decoder_layers=2)))
    with torch.no_grad():
        change(model)
    return model


@pytest.fixture(scope="module")
def stages(
    traced_once: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, ir.Model], Reference]:
    return traced_reference(tiny(), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def decided(stages: tuple[dict[str, ir.Model], Reference]) -> dict[str, Islands]:
    traced, reference = stages
    return find_islands(traced, measure_stages(reference))


def test_few_norms_and_softmaxes_need_float32(
    stages: tuple[dict[str, ir.Model], Reference], decided: dict[str, Islands]
) -> None:
    traced, _ = stages
    listed = [
        node.name
        for graph in traced.values()
        for node in graph.graph
        if node.op_type in ("LayerNormalization", "Softmax")
    ]
    kept = [name for islands in decided.values() for name in islands.nodes]
    assert len(kept) < 0.25 * len(listed)


def test_the_islands_are_enough(
    stages: tuple[dict[str, ir.Model], Reference], decided: dict[str, Islands], tmp_path: Path
) -> None:
    _, reference = stages
    folder = typed_stages(reference, decided, tmp_path / "half")
    # 11 bits through some fifty layers, logits of order one
    assert logits_error(reference, folder) < 0.03
    layer = worst_layer(reference, folder)
    assert layer is not None
    assert 0 < layer.added < 0.01


def test_shares_add_up(stages: tuple[dict[str, ir.Model], Reference]) -> None:
    """Products of the image encoder's first convolution, counted by hand, and of the whole."""
    _, reference = stages
    proto = onnx.load(reference.graph(GraphName.IMAGE_ENCODER), load_external_data=False)
    share = type_share(proto)
    assert share.conversions == 0
    assert share.nodes.keys() == share.multiply_adds.keys() == {"float32"}
    first = next(node for node in proto.graph.node if node.op_type == "Conv")
    del proto.graph.node[list(proto.graph.node).index(first) + 1 :]
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info(first.output[0], F32, None))
    (weight,) = (t for t in proto.graph.initializer if t.name == first.input[1])
    out, channels, kernel, _ = weight.dims
    alone = type_share(proto).multiply_adds["float32"]
    assert alone == 32 * 32 * out * channels * kernel * kernel  # stride 2 from 64 x 64
    (row,) = describe_types({GraphName.IMAGE_ENCODER: share}).splitlines()[1:]
    assert row.split().count("100.0") == 3


def blow_up(model: Cris) -> None:
    """The projector's first convolution times 1e5, undone by its second: the same logits."""
    first, second = model.proj.vis[1], model.proj.vis[3]
    first[1].weight *= 1e5
    first[1].bias *= 1e5
    second[0].weight *= 1e-5


def test_a_blown_up_model_gets_its_island(tmp_path: Path) -> None:
    traced, reference = traced_reference(tiny(blow_up), tmp_path)
    decided = find_islands(traced, measure_stages(reference))
    rules = {finding.rule for finding in decided["mask_decoder"].findings}
    assert rules >= {RuleName.RANGE, RuleName.WEIGHT_RESOLUTION}
    assert not decided["text_encoder"].nodes
    good = typed_stages(reference, decided, tmp_path / "good")
    assert logits_error(reference, good) < 0.03
    plain = typed_stages(reference, dict.fromkeys(traced, NO_ISLANDS), tmp_path / "plain")
    assert not logits_error(reference, plain) < 1
    layer = worst_layer(reference, plain)
    assert layer is not None
    # The convolution (here as a product) that overflowed, not one of the many that read it.
    assert layer.graph == "mask_decoder"
    assert layer.op_type in ("Conv", "MatMul")
    assert np.isinf(layer.error)
    assert layer.brought_in < 0.01
