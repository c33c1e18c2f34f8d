"""Quantisation: hand-made graphs of a few nodes, run in ONNX Runtime against float64 or float32."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto

from cris_deploy.errors import InputError
from cris_export.precision.int8.calibration import LEVELS, Observation, observe
from cris_export.precision.int8.equalise import equalise, find_moves
from cris_export.precision.int8.quantise import halve_maps, quantise, quantise_embedding
from cris_export.precision.int8.rounding import round_weights
from cris_export.precision.int8.sites import find_sites, fold_weight_slices, residual_values
from tests.helpers.onnx_graphs import graph, node, value

RNG = np.random.default_rng(0)
CHANNELS, SIDE = 48, 9


def floats(*shape, scale=1.0):
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


def run(model, feed):
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]


def conv_chain(padded=True):
    """ReLU, then a convolution with a bias, a ReLU and a 1x1 convolution without one."""
    pads = {"pads": [1, 1, 1, 1]} if padded else {}
    side = SIDE if padded else SIDE - 2
    return graph(
        [
            node("Relu", ["x"], ["a"]),
            node("Conv", ["a", "w1", "b1"], ["c"], **pads),
            node("Relu", ["c"], ["d"]),
            node("Conv", ["d", "w2"], ["y"]),
        ],
        [value("x", ["batch", CHANNELS, SIDE, SIDE])],
        [value("y", ["batch", CHANNELS, side, side])],
        {
            "w1": floats(CHANNELS, CHANNELS, 3, 3, scale=0.1),
            "b1": floats(CHANNELS, scale=0.1),
            "w2": floats(CHANNELS, CHANNELS, 1, 1, scale=0.2),
        },
    )


def quantised(proto, feeds, tmp_path):
    path = tmp_path / "float.onnx"
    onnx.save(proto, path)
    model = ir.from_proto(proto)
    sites = find_sites(model)
    residuals = residual_values(model, sites)
    names = [site.source.name for site in sites if site.whole] + [v.name for v in residuals]
    seen = observe(path, feeds, names, "test")
    quantise(model, sites, residuals, seen, round_weights(sites, seen))
    return model


@pytest.mark.parametrize("padded", [True, False])
def test_convolutions_stay_close_and_are_signed(tmp_path, padded):
    proto = conv_chain(padded)
    feeds = [{"x": floats(1, CHANNELS, SIDE, SIDE)} for _ in range(4)]
    model = quantised(proto, feeds, tmp_path)
    unseen = {"x": floats(3, CHANNELS, SIDE, SIDE)}
    expected, found = run(proto, unseen), run(model, unseen)
    # Two layers of 8-bit inputs and weights: some 1% of the signal; a wrong border is 10% and more.
    error = np.sqrt(np.mean((found - expected) ** 2, axis=(0, 1))) / expected.std()
    assert np.median(error) < 0.02
    assert np.median(error[0]) < 0.02
    assert np.median(error[:, -1]) < 0.02
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in ir.to_proto(model).graph.initializer}
    pairs = [n for n in model.graph if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert len(pairs) == 2 * 2 + 2
    for pair in pairs:
        zero = weights[pair.inputs[2].name]
        # TensorRT takes an unsigned zero point for a signed one, and only warns.
        assert zero.dtype == np.int8
        assert not zero.any()


def test_centring_uses_all_integers(tmp_path):
    proto = conv_chain()
    feeds = [{"x": floats(1, CHANNELS, SIDE, SIDE)} for _ in range(4)]
    model = quantised(proto, feeds, tmp_path)
    first = next(n for n in model.graph if n.op_type == "QuantizeLinear")
    observed = ir.to_proto(model)
    name = first.outputs[0].name
    observed.graph.output.append(value(name, None, TensorProto.INT8))
    session = onnxruntime.InferenceSession(observed.SerializeToString())
    integers = session.run([name], feeds[0])[0]
    assert integers.min() == -LEVELS
    assert integers.max() > 100


def test_sites_leave_out_what_is_narrow_grouped_or_dynamic():
    proto = graph(
        [
            node("Conv", ["x", "stem"], ["a"]),  # three colours
            node("Conv", ["a", "blur"], ["b"], group=CHANNELS),
            node("Conv", ["b", "w"], ["c"]),
            node("Reshape", ["c", "shape"], ["d"]),
            node("MatMul", ["d", "d"], ["e"]),
            node("MatMul", ["words", "key"], ["f"]),
            node("Add", ["e", "f"], ["y"]),
        ],
        [value("x", [1, 3, 5, 5]), value("words", [1, CHANNELS, CHANNELS])],
        [value("y", [1, CHANNELS, CHANNELS])],
        {
            "stem": floats(CHANNELS, 3, 1, 1),
            "blur": floats(CHANNELS, 1, 2, 2),
            "w": floats(3 * CHANNELS, CHANNELS, 1, 1),
            "shape": np.array([1, CHANNELS, CHANNELS]),
            "key": floats(CHANNELS, CHANNELS),
        },
    )
    sites = {site.name: site.whole for site in find_sites(ir.from_proto(proto))}
    assert sites == {"c": True, "f": False}  # words come from outside: only their weight is int8


def test_residual_sums_and_poolings_are_rounded():
    proto = graph(
        [
            node("Relu", ["x"], ["a"]),
            node("Conv", ["a", "w"], ["b"]),
            node("Add", ["b", "a"], ["c"]),
            node("Relu", ["c"], ["d"]),
            node("AveragePool", ["d"], ["e"], kernel_shape=[2, 2]),
            node("Conv", ["d", "w"], ["f"]),
            node("Conv", ["e", "w"], ["g"]),
            node("Add", ["f", "offset"], ["y"]),
        ],
        [value("x", [1, CHANNELS, 4, 4])],
        [value("y", [1, CHANNELS, 4, 4]), value("g", [1, CHANNELS, 3, 3])],
        {"w": floats(CHANNELS, CHANNELS, 1, 1), "offset": floats(1, CHANNELS, 4, 4)},
    )
    model = ir.from_proto(proto)
    found = [v.name for v in residual_values(model, find_sites(model))]
    assert found == ["b"]  # d is a layer's input already; f gets only a constant added


def test_slices_of_weights_become_weights():
    proto = graph(
        [
            node("Slice", ["w", "one", "end", "axis", "two"], ["part"]),
            node("Conv", ["x", "part"], ["y"]),
        ],
        [value("x", [1, CHANNELS, 4, 4])],
        [value("y", [1, CHANNELS, 4, 4])],
        {
            "w": floats(CHANNELS, CHANNELS, 3, 1),
            "one": np.array([1]),
            "end": np.array([2**62]),
            "axis": np.array([2]),
            "two": np.array([2]),
        },
    )
    model = ir.from_proto(proto)
    feed = {"x": floats(1, CHANNELS, 4, 4)}
    fold_weight_slices(model)
    assert [n.op_type for n in model.graph] == ["Conv"]
    np.testing.assert_array_equal(run(model, feed), run(proto, feed))


def test_equalising_changes_nothing_but_the_ranges(tmp_path):
    loud = np.where(np.arange(CHANNELS) == 3, 100.0, 1.0).astype(np.float32)
    proto = graph(
        [
            node("LayerNormalization", ["x", "scale", "shift"], ["a"]),
            node("Transpose", ["a"], ["b"], perm=[1, 0, 2]),
            node("MatMul", ["b", "w"], ["c"]),
            node("Unsqueeze", ["c", "axis"], ["d"]),
            node("Transpose", ["d"], ["e"], perm=[1, 2, 3, 0]),
            node("Conv", ["e", "w1", "b1"], ["f"]),
            node("Relu", ["f"], ["g"]),
            node("Conv", ["g", "w2"], ["y"]),
        ],
        [value("x", [5, 7, CHANNELS])],
        [value("y", [7, CHANNELS, CHANNELS, 1])],
        {
            "scale": loud,
            "shift": floats(CHANNELS),
            "w": floats(CHANNELS, CHANNELS) / loud[:, None],
            "axis": np.array([0]),
            "w1": floats(CHANNELS, 5, 1, 1) * loud[:, None, None, None],
            "b1": floats(CHANNELS),
            "w2": floats(CHANNELS, CHANNELS, 1, 1) / loud[:, None, None],
        },
    )
    # A convolution over five channels is no site, but its ReLU's consumer is.
    path = tmp_path / "float.onnx"
    onnx.save(proto, path)
    feed = {"x": floats(5, 7, CHANNELS)}
    model = ir.from_proto(proto)
    moves = find_moves(model)
    assert {move.name for move in moves} == {"a", "g"}
    before = observe(path, [feed], ["a", "g"], "test")
    equalise(moves, before)
    np.testing.assert_allclose(run(model, feed), run(proto, feed), rtol=1e-4, atol=1e-3)
    onnx.save(ir.to_proto(model), path)
    after = observe(path, [feed], ["a", "g"], "test")
    for name in ("a", "g"):
        ratio = [np.ptp(np.log(seen[name].channels)) for seen in (before, after)]
        assert ratio[1] < ratio[0] - 1
        assert after[name].noise < before[name].noise


def test_nothing_is_equalised_past_a_second_reader():
    proto = graph(
        [
            node("LayerNormalization", ["x", "scale"], ["a"]),
            node("MatMul", ["a", "w"], ["b"]),
            node("Add", ["a", "b"], ["y"]),
        ],
        [value("x", [5, CHANNELS])],
        [value("y", [5, CHANNELS])],
        {"scale": floats(CHANNELS), "w": floats(CHANNELS, CHANNELS)},
    )
    assert find_moves(ir.from_proto(proto)) == []


def test_step_balances_rounding_and_clipping():
    values = np.abs(RNG.standard_normal(200_000)).astype(np.float32)
    values[0] = 50.0  # one outlier must not cost everyone four bits
    counts = np.bincount(values.view(np.uint32) >> 17, minlength=1 << 14)
    seen = Observation(counts, np.array([50.0], np.float32), np.zeros(1), len(values))

    def error(step):
        rounded = np.clip(np.rint(values / step), -LEVELS, LEVELS) * step
        return float(np.mean((rounded - values) ** 2))

    best = min(error(step) for step in np.geomspace(50 / LEVELS / 20, 50 / LEVELS, 300))
    assert error(seen.step()) < 1.05 * best
    assert seen.step() < 50 / LEVELS / 2
    assert seen.step(margin=1.25) == pytest.approx(1.25 * seen.step())
    assert seen.step(margin=1e3) == pytest.approx(50 / LEVELS)  # nothing larger was seen


def test_embedding_rows_have_their_own_step():
    table = floats(40, 32) * np.geomspace(1e-3, 1e3, 40, dtype=np.float32)[:, None]
    proto = graph(
        [node("Gather", ["table", "tokens"], ["a"]), node("Relu", ["a"], ["y"])],
        [value("tokens", ["batch", 4], TensorProto.INT64)],
        [value("y", ["batch", 4, 32])],
        {"table": table},
    )
    model = ir.from_proto(proto)
    quantise_embedding(model)
    feed = {"tokens": np.array([[0, 1, 38, 39]])}
    expected = run(proto, feed)
    largest = np.abs(table[feed["tokens"]]).max(axis=2, keepdims=True)
    assert (np.abs(run(model, feed) - expected) <= largest / LEVELS * 0.51).all()
    stored = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    assert stored == table.size + 4 * len(table) + 8  # and one axis


def test_large_maps_are_stored_in_float16():
    proto = graph(
        [node("Add", ["x", "map"], ["y"])],
        [value("x", [1, 512, 16, 16])],
        [value("y", [1, 512, 16, 16])],
        {"map": floats(1, 512, 16, 16)},
    )
    model = ir.from_proto(proto)
    halve_maps(model)
    feed = {"x": floats(1, 512, 16, 16)}
    np.testing.assert_allclose(run(model, feed), run(proto, feed), atol=4e-3)
    assert {v.dtype for v in model.graph.initializers.values()} == {ir.DataType.FLOAT16}


def test_nothing_to_watch_is_nothing_seen(tmp_path):
    path = tmp_path / "float.onnx"
    onnx.save(conv_chain(), path)
    assert observe(path, [{"x": floats(1, CHANNELS, SIDE, SIDE)}], [], "test") == {}


def test_values_that_are_not_finite_are_refused(tmp_path):
    proto = conv_chain()
    path = tmp_path / "float.onnx"
    onnx.save(proto, path)
    bad = floats(1, CHANNELS, SIDE, SIDE)
    bad[0, 0, 0, 0] = np.inf
    with pytest.raises(InputError, match=r"--calibration: a is not finite"):
        observe(path, [{"x": bad}], ["a"], "test")
