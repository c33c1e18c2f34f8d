"""Typing a graph as float16: on hand-made graphs of a few nodes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

from cris_deploy.execution.backends.onnxruntime import _Session
from cris_export.errors import ExportError
from cris_export.precision.emulate import emulate_float16
from cris_export.precision.float16 import to_float16
from cris_export.precision.int8.half import with_steps
from cris_export.precision.islands import Islands, find_islands
from cris_export.precision.ranges import GraphMeasures, measure, open_session
from cris_export.precision.rules import RuleName
from tests.helpers.onnx_graphs import F16, F32, graph, node, value


def model(*parts) -> ir.Model:
    return ir.from_proto(graph(*parts))


def islands(**nodes: RuleName) -> Islands:
    return Islands(nodes, frozenset(), ())


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {v.name: v.type.tensor_type.elem_type for v in values}


def checked(typed: ir.Model) -> onnx.ModelProto:
    proto = ir.to_proto(typed)
    # Full check infers all types: a forgotten Cast is an error here.
    onnx.checker.check_model(proto, full_check=True)
    return proto


def measured(proto: onnx.ModelProto, folder: Path, *feeds) -> GraphMeasures:
    onnx.save(proto, folder / "measured.onnx")
    return measure(folder / "measured.onnx", feeds)


def found(proto: onnx.ModelProto, folder: Path, *feeds) -> Islands:
    measures = {"test": measured(proto, folder, *feeds)}
    return find_islands({"test": ir.from_proto(proto)}, measures)["test"]


def half_answer(proto: onnx.ModelProto, kept: Islands, feed) -> np.ndarray:
    """What true float16 arithmetic makes of the first output."""
    typed = ir.from_proto(proto)
    to_float16(typed, kept)
    session = open_session(emulate_float16(checked(typed)), Path())
    return session.run(None, feed)[0]


def matmul_and_norm():
    return (
        [
            node("MatMul", ["image", "w"], ["a"]),
            node("LayerNormalization", ["a", "scale", "shift"], ["b"]),
            node("Relu", ["b"], ["c"]),
        ],
        [value("image", [2, 4])],
        [value("c", [2, 4])],
        {
            "w": np.eye(4, dtype=np.float32),
            "scale": np.ones(4, np.float32),
            "shift": np.zeros(4, np.float32),
        },
    )


def test_island_is_single_and_the_rest_half() -> None:
    typed = model(*matmul_and_norm())
    to_float16(typed, islands(b=RuleName.INNER_SQUARES), keep=frozenset({"image"}))
    proto = checked(typed)
    types = element_types(proto)
    assert (types["image"], types["a"], types["b"], types["c"]) == (F32, F16, F32, F16)
    stored = {i.name: i.data_type for i in proto.graph.initializer}
    assert stored == {"w_float16": F16, "scale": F32, "shift": F32}


def test_without_islands_all_is_half() -> None:
    typed = model(*matmul_and_norm())
    to_float16(typed)
    proto = checked(typed)
    assert set(element_types(proto).values()) == {F16}
    assert not [n for n in proto.graph.node if n.op_type == "Cast"]


def test_resize_keeps_its_scales_in_single() -> None:
    typed = model(
        [node("Resize", ["x", "", "scales"], ["y"], mode="linear")],
        [value("x", [1, 1, 2, 2])],
        [value("y", [1, 1, 4, 4])],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    )
    to_float16(typed)
    proto = checked(typed)
    assert element_types(proto)["y"] == F16
    assert {i.name: i.data_type for i in proto.graph.initializer} == {"scales": F32}


def test_shape_takes_what_there_is() -> None:
    typed = model(
        [
            node("Relu", ["x"], ["a"]),
            node("Shape", ["a"], ["size"]),
            node("Reshape", ["a", "size"], ["y"]),
        ],
        [value("x", [2, 3])],
        [value("y", [2, 3])],
        {},
    )
    to_float16(typed)
    assert [n.op_type for n in checked(typed).graph.node] == ["Relu", "Shape", "Reshape"]


def test_kept_output_keeps_name_and_type() -> None:
    typed = model([node("Relu", ["x"], ["logits"])], [value("x", [2])], [value("logits", [2])], {})
    to_float16(typed, keep=frozenset({"logits"}))
    proto = checked(typed)
    assert [o.name for o in proto.graph.output] == ["logits"]
    assert element_types(proto)["logits"] == F32
    assert element_types(proto)["x"] == F16


def test_a_tensor_is_cast_once() -> None:
    typed = model(
        [
            node("Relu", ["image"], ["a"]),
            node("Neg", ["image"], ["b"]),
            node("Add", ["a", "b"], ["c"]),
        ],
        [value("image", [2])],
        [value("c", [2])],
        {},
    )
    to_float16(typed, keep=frozenset({"image"}))
    assert [n.op_type for n in checked(typed).graph.node].count("Cast") == 1


def test_integers_and_bools_are_left_alone() -> None:
    typed = model(
        [
            node("Equal", ["tokens", "zero"], ["padding"]),
            node("Where", ["padding", "low", "high"], ["y"]),
        ],
        [value("tokens", [3], TensorProto.INT64)],
        [value("padding", [3], TensorProto.BOOL), value("y", [3])],
        {
            "zero": np.array(0, np.int64),
            "low": np.array(-np.inf, np.float32),
            "high": np.array(0, np.float32),
        },
    )
    to_float16(typed)
    types = element_types(checked(typed))
    assert (types["tokens"], types["padding"], types["y"]) == (
        TensorProto.INT64,
        TensorProto.BOOL,
        F16,
    )


def test_weight_beyond_the_range_is_named_or_kept(tmp_path: Path) -> None:
    proto = graph(
        [node("Mul", ["x", "huge"], ["y"])],
        [value("x", [2])],
        [value("y", [2])],
        {"huge": np.array([1e5, 1], np.float32)},
    )
    with pytest.raises(ExportError, match="huge"):
        to_float16(ir.from_proto(proto))
    feed = {"x": np.array([1e-3, 1], np.float32)}
    kept = found(proto, tmp_path, feed)
    assert kept.nodes == {"y": RuleName.WEIGHT_RANGE}
    np.testing.assert_allclose(half_answer(proto, kept, feed), [100, 1], rtol=1e-3)


def test_denormal_weights_are_kept(tmp_path: Path) -> None:
    weights = (1e-7 * np.random.default_rng(0).normal(size=(8, 8))).astype(np.float32)
    proto = graph(
        [node("MatMul", ["x", "w"], ["y"])],
        [value("x", [1, 8])],
        [value("y", [1, 8])],
        {"w": weights},
    )
    feed = {"x": np.full((1, 8), 1000, np.float32)}
    kept = found(proto, tmp_path, feed)
    assert kept.nodes == {"y": RuleName.WEIGHT_RESOLUTION}
    exact = feed["x"] @ weights
    np.testing.assert_allclose(half_answer(proto, kept, feed), exact, rtol=2e-2)  # denormal result
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(half_answer(proto, islands(), feed), exact, rtol=2e-2)


def blown_up():
    """Weights times 1e4, undone by the next product: the value between leaves float16's range."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 16, 16)).astype(np.float32)
    return graph(
        [
            node("MatMul", ["x", "first"], ["a"]),
            node("Relu", ["a"], ["b"]),
            node("MatMul", ["b", "second"], ["y"]),
        ],
        [value("x", [4, 16])],
        [value("y", [4, 16])],
        {"first": 1e4 * first, "second": 1e-4 * second},
    )


def test_values_out_of_range_get_an_island(tmp_path: Path) -> None:
    proto, rng = blown_up(), np.random.default_rng(1)
    feed = {"x": rng.normal(size=(4, 16)).astype(np.float32)}
    kept = found(proto, tmp_path, feed)
    # Whoever makes the value, and whoever reads it: a cast between them would overflow.
    assert kept.nodes.keys() == {"a", "b", "y"}
    (exact,) = open_session(proto, tmp_path).run(None, feed)
    np.testing.assert_allclose(half_answer(proto, kept, feed), exact, atol=2e-2)  # sums of 16
    assert not np.isfinite(half_answer(proto, islands(), feed)).all()
    # And this is what ONNX Runtime itself shows of the same graph: nothing.
    typed = ir.from_proto(proto)
    to_float16(typed)
    (hidden,) = onnxruntime.InferenceSession(checked(typed).SerializeToString()).run(
        None, {"x": feed["x"].astype(np.float16)}
    )
    assert np.isfinite(hidden).all()


def attention(scale: float, mask: np.ndarray):
    """Scores of about 144 * scale for the pixels below: large, and close to each other."""
    return graph(
        [
            node("MatMul", ["x", "w"], ["q"]),
            node("Transpose", ["x"], ["k"], perm=[1, 0]),
            node("MatMul", ["q", "k"], ["scores"]),
            node("Add", ["scores", "mask"], ["masked"]),
            node("Softmax", ["masked"], ["p"]),
            node("MatMul", ["p", "x"], ["y"]),
        ],
        [value("x", [6, 16])],
        [value("y", [6, 16])],
        {
            "w": scale * np.eye(16, dtype=np.float32),
            "mask": mask.astype(np.float32),
        },
    )


ALIKE = {"x": (3 + 0.1 * np.random.default_rng(1).normal(size=(6, 16))).astype(np.float32)}
CAUSAL = np.triu(np.full((6, 6), -np.inf), 1)
PADDED = np.where(np.arange(6) > 3, -30000.0, 0.0)[None]


@pytest.mark.parametrize("mask", [CAUSAL, PADDED], ids=["minus infinity", "-30000"])
def test_masks_and_small_scores_need_no_island(tmp_path: Path, mask: np.ndarray) -> None:
    assert not found(attention(0.02, mask), tmp_path, ALIKE).nodes


@pytest.mark.parametrize("mask", [CAUSAL, PADDED], ids=["minus infinity", "-30000"])
def test_large_scores_are_kept_with_what_makes_them(tmp_path: Path, mask: np.ndarray) -> None:
    proto = attention(1.0, mask)
    kept = found(proto, tmp_path, ALIKE)
    # In float32 from rounded scores, the softmax would be no better.
    assert kept.nodes.keys() >= {"scores", "masked", "p"}
    assert kept.nodes["p"] is RuleName.SENSITIVITY
    assert {"q", "y"}.isdisjoint(kept.nodes)
    (exact,) = open_session(proto, tmp_path).run(None, ALIKE)

    def error(islands: Islands) -> float:
        return float(np.abs(half_answer(proto, islands, ALIKE) - exact).max())

    assert error(kept) < 0.7 * error(islands())
    alone = error(islands(p=RuleName.SENSITIVITY))
    assert alone > 1.2 * error(kept)


@pytest.mark.parametrize(("size", "kept"), [(1.0, False), (20.0, True)])
def test_norms_are_kept_for_their_sum_of_squares(tmp_path: Path, size: float, kept: bool) -> None:
    proto = graph(*matmul_and_norm())
    row = np.array([-2, -1, 1, 2], np.float32)
    feed = {"image": np.stack([size * row, row])}
    # 10 * 20^2 = 4000 stays below 65504 / 16; twice the first row does not.
    more = {"image": np.stack([1.1 * size * row, row])}
    assert found(proto, tmp_path, feed).nodes == {}
    nodes = found(proto, tmp_path, feed, more).nodes
    assert nodes == ({"b": RuleName.INNER_SQUARES} if kept else {})


def test_sums_before_a_mean_are_measured(tmp_path: Path) -> None:
    proto = graph(
        [node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)],
        [value("x", [1, 4000])],
        [value("y", [1])],
        {"axes": np.array([1], np.int64)},
    )
    assert not found(proto, tmp_path, {"x": np.full((1, 4000), 4, np.float32)}).nodes
    (finding,) = found(proto, tmp_path, {"x": np.full((1, 4000), 5, np.float32)}).findings
    assert (finding.rule, finding.number) == (RuleName.INNER_SUM, 20000)


def test_islands_grow_where_that_saves_casts(tmp_path: Path) -> None:
    """Two norms with a cheap node between them: it joins them; the products do not."""
    proto = graph(
        [
            node("MatMul", ["x", "w"], ["a"]),
            node("LayerNormalization", ["a", "scale"], ["b"]),
            node("Mul", ["b", "scale"], ["c"]),
            node("LayerNormalization", ["c", "scale"], ["d"]),
            node("MatMul", ["d", "w"], ["y"]),
        ],
        [value("x", [1, 64])],
        [value("y", [1, 64])],
        {"w": np.eye(64, dtype=np.float32), "scale": np.full(64, 20, np.float32)},
    )
    kept = found(proto, tmp_path, {"x": np.linspace(-20, 20, 64, dtype=np.float32)[None]})
    assert kept.nodes == {
        "b": RuleName.INNER_SQUARES,
        "c": RuleName.FEWER_CASTS,
        "d": RuleName.INNER_SQUARES,
    }
    typed = ir.from_proto(proto)
    to_float16(typed, kept)
    assert [n.op_type for n in checked(typed).graph.node].count("Cast") == 2


def test_what_stages_hand_over_has_one_type(tmp_path: Path) -> None:
    writer = graph(
        [node("MatMul", ["x", "w"], ["f"])],
        [value("x", [1, 2])],
        [value("f", [1, 2])],
        {"w": 3e4 * np.eye(2, dtype=np.float32)},
    )
    reader = graph(
        [node("MatMul", ["f", "w"], ["y"])],
        [value("f", [1, 2])],
        [value("y", [1, 2])],
        {"w": 1e-2 * np.eye(2, dtype=np.float32)},
    )
    large, small = np.full((1, 2), 3e4, np.float32), np.ones((1, 2), np.float32)
    decided = find_islands(
        {"writer": ir.from_proto(writer), "reader": ir.from_proto(reader)},
        {
            "writer": measured(writer, tmp_path, {"x": small}),
            # As if this stage had been measured on tamer samples than its writer.
            "reader": measured(reader, tmp_path, {"f": large / 1e4}),
        },
    )
    assert decided["writer"].face == decided["reader"].face == {"f"}
    assert decided["writer"].nodes == {"f": RuleName.RANGE}
    assert decided["reader"].nodes == {"y": RuleName.FACE}
    typed = ir.from_proto(reader)
    to_float16(typed, decided["reader"])
    assert element_types(checked(typed))["f"] == F32


def test_measures_are_the_numbers(tmp_path: Path) -> None:
    proto = graph(
        [node("Mul", ["x", "two"], ["y"])],
        [value("x", [2])],
        [value("y", [2])],
        {"two": np.array(2, np.float32)},
    )
    x = np.array([1 + 2**-12, -3], np.float32)  # the first lies between two float16 numbers
    layers = measured(proto, tmp_path, {"x": x}, {"x": x / 2}).layers
    error = 2**-12 / np.sqrt(x @ x)
    assert layers["y"].largest == 6
    assert layers["y"].rounding == pytest.approx(error, rel=1e-3)
    assert layers["y"].sensitivity == pytest.approx(error, rel=1e-3)
    assert (layers["y"].weight_largest, layers["y"].weight_rounding) == (2, 0)


def test_float16_of_float16_is_emulated_exactly(tmp_path: Path) -> None:
    """Elementwise operators are rounded correctly by numpy: emulation agrees to the last bit."""
    proto = graph(
        [
            node("Mul", ["x", "w"], ["a"]),
            node("Add", ["a", "x"], ["b"]),
            node("Mul", ["b", "a"], ["y"]),
        ],
        [value("x", [64])],
        [value("y", [64])],
        {"w": np.random.default_rng(0).normal(size=64).astype(np.float32)},
    )
    x = np.random.default_rng(1).normal(size=64).astype(np.float16)
    w = np.random.default_rng(0).normal(size=64).astype(np.float16)
    expected = ((x * w) + x) * (x * w)
    answer = half_answer(proto, islands(), {"x": x.astype(np.float32)})
    assert answer.astype(np.float16).tolist() == expected.tolist()


def test_onnxruntime_loads_half_products_of_transposed_values(tmp_path: Path) -> None:
    """Without the backend's precaution, ONNX Runtime 1.32 dies of a segmentation fault here."""
    typed = model(
        [node("Transpose", ["x"], ["t"], perm=[1, 0, 2]), node("MatMul", ["t", "w"], ["y"])],
        [value("x", ["batch", 17, 64])],
        [value("y", [17, "batch", 64])],
        {"w": np.ones((64, 64), np.float32)},
    )
    to_float16(typed)
    onnx.save(checked(typed), tmp_path / "half.onnx")
    script = (
        "import pathlib, sys; from cris_deploy.execution.backends.onnxruntime import _Session\n"
        "_Session(pathlib.Path(sys.argv[1]), None, half=True)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "half.onnx"], check=True)


def rounded_product(step: float, fine: float = 0.5):
    """A Relu, and a product of it in integers: the steps of the weights and of what they meet."""
    return (
        [
            node("Relu", ["x"], ["a"]),
            node("QuantizeLinear", ["a", "fine", "zero"], ["q"]),
            node("DequantizeLinear", ["q", "fine", "zero"], ["d"]),
            node("DequantizeLinear", ["w", "steps", "zeros"], ["e"], axis=1),
            node("MatMul", ["d", "e"], ["b"]),
            node("Relu", ["b"], ["c"]),
        ],
        [value("x", [2, 4])],
        [value("c", [2, 4])],
        {
            "fine": np.float32(fine),
            "zero": np.int8(0),
            "w": np.full((4, 4), 3, np.int8),
            "steps": np.full(4, step, np.float32),
            "zeros": np.zeros(4, np.int8),
        },
    )


def test_steps_have_the_type_of_what_they_round() -> None:
    typed = model(*rounded_product(0.25))
    to_float16(typed)
    proto = checked(typed)
    types = element_types(proto)
    assert {types[name] for name in ("x", "a", "d", "e", "b", "c")} == {F16}
    assert types["q"] == TensorProto.INT8
    assert "Cast" not in {n.op_type for n in proto.graph.node}
    x = np.arange(8, dtype=np.float16).reshape(2, 4)
    session = open_session(proto, Path())
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x @ np.full((4, 4), 0.75))


@pytest.mark.parametrize(
    ("step", "fine", "kept"),
    [(0.25, 0.5, set()), (1e-6, 0.5, {"e", "d", "b"}), (0.25, 1e-6, {"q", "d", "e", "b"})],
)
def test_a_layer_whose_steps_half_does_not_resolve_stays_as_it_is(
    step: float, fine: float, kept: set[str]
) -> None:
    typed = model(*rounded_product(step, fine))
    found = with_steps(typed.graph, islands())
    names = {n.outputs[0].name: n.name for n in typed.graph}
    assert set(found.nodes) == {names[name] for name in kept}
    to_float16(typed, found)
    types = element_types(checked(typed))
    for name in ("d", "e", "b"):
        assert types[name] == (F32 if kept else F16)
    assert types["c"] == F16


def test_onnxruntime_keeps_biases_between_integers(tmp_path: Path) -> None:
    # Of steps whose product float16 rounds to 0: a bias in such units is lost.
    fine, steps = np.float16(8e-5), np.float16(8e-5)
    parts = (
        [
            node("QuantizeLinear", ["x", "fine", "zero"], ["q"]),
            node("DequantizeLinear", ["q", "fine", "zero"], ["d"]),
            node("DequantizeLinear", ["w", "steps", "zeros"], ["e"], axis=0),
            node("Conv", ["d", "e", "bias"], ["c"]),
            node("QuantizeLinear", ["c", "coarse", "zero"], ["r"]),
            node("DequantizeLinear", ["r", "coarse", "zero"], ["y"]),
        ],
        [value("x", [1, 2, 4, 4], F16)],
        [value("y", [1, 2, 4, 4], F16)],
        {
            "fine": fine,
            "coarse": np.float16(0.5),
            "zero": np.int8(0),
            "w": np.full((2, 2, 1, 1), 100, np.int8),
            "steps": np.full(2, steps, np.float16),
            "zeros": np.zeros(2, np.int8),
            "bias": np.array([1.0, -2.0], np.float16),
        },
    )
    onnx.save(graph(*parts), tmp_path / "graph.onnx")
    session = _Session(tmp_path / "graph.onnx", 1, half=True)
    result = session.run({"x": np.zeros((1, 2, 4, 4), np.float16)})["y"]
    np.testing.assert_array_equal(result[0, :, 0, 0], [1.0, -2.0])
