"""Every node of every exported graph has a kernel in ONNX Runtime's CUDA provider.

Nodes that go to the CPU are refused there, so one of them is a bundle that no GPU loads.
"""

import re
import tomllib
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from cris_deploy.bundle.manifest import GraphName, Precision
from cris_deploy.execution.backends.onnxruntime_cuda import CAPTURES_SINCE, session_entries
from cris_train.model import CrisConfig
from tests.helpers.cuda_kernels import Kernel, Stranger, model_of, strangers, table
from tests.helpers.exported_graphs import exported_graphs

ROOT = Path(__file__).parents[2]
# Version of ONNX Runtime from which the operator's CUDA kernel can be captured: before, it copied
# from host memory that was given back (pull requests 32120 and 32121), and a replay copies again.
CAPTURED_SINCE = {
    **dict.fromkeys(("Concat", "MatMul", "NonMaxSuppression", "ScatterND", "Split"), (1, 30)),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), (1, 30)),
    "GatherND": (1, 31),
}
TINY = CrisConfig.tiny(decoder_layers=1)
CONFIGS = [
    pytest.param(TINY, id="tiny"),
    pytest.param(CrisConfig.tiny(contrastive=False), id="tiny-plain-head"),
    pytest.param(CrisConfig.rn50(), id="RN50", marks=pytest.mark.full_size),
    pytest.param(CrisConfig.rn101(), id="RN101", marks=pytest.mark.full_size),
]


of = cache(exported_graphs)


@pytest.fixture(scope="module", params=CONFIGS)
def graphs(request: pytest.FixtureRequest):
    return of(request.param)


@pytest.fixture(scope="module")
def tiny():
    return of(TINY)


def floor() -> tuple[int, ...]:
    """The lowest version of onnxruntime-gpu that the extra admits."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (line,) = [x for x in extras["optional-dependencies"]["gpu"] if x.startswith("onnxruntime-gpu")]
    found = re.search(r">=(\d+)\.(\d+)", line)
    assert found is not None
    return tuple(map(int, found.groups()))


def test_every_node_has_a_kernel(graphs) -> None:
    walked = 0
    for precision, named in graphs.items():
        for name, model in named.items():
            assert list(strangers(model)) == [], f"{name} in {precision}"
            walked += len(model.graph.node)
    assert set(graphs) == set(Precision)
    assert all(set(named) == set(GraphName) for named in graphs.values())
    assert walked > 3 * 2 * 150  # the full graph is the sum of the others


def test_no_operator_is_unsafe_under_capture_in_the_lowest_version(graphs) -> None:
    for named in graphs.values():
        used = {node.op_type for node in named[GraphName.FULL].graph.node}
        late = {op for op in used if CAPTURED_SINCE.get(op, (0, 0)) > CAPTURES_SINCE}
        assert late == set()


def test_the_extra_the_check_and_the_table_are_of_one_version() -> None:
    assert floor() == CAPTURES_SINCE
    assert table()[0] == "{}.{}.0".format(*CAPTURES_SINCE)


def test_int8_graphs_are_int8(graphs) -> None:
    """What is laid out without calibration has the layers that calibration would give it."""
    full = graphs[Precision.INT8][GraphName.FULL].graph
    stored = {tensor.data_type for tensor in full.initializer}
    assert onnx.TensorProto.INT8 in stored
    assert sum(node.op_type == "QuantizeLinear" for node in full.node) > 20


@pytest.mark.parametrize("opset", [18, 22])
def test_other_opsets_have_kernels(opset: int) -> None:
    for named in exported_graphs(CrisConfig.tiny(), opset).values():
        assert list(strangers(named[GraphName.FULL])) == []


def test_what_the_optimiser_makes_of_a_graph_has_kernels(tiny, tmp_path: Path) -> None:
    """The rewriting that comes before nodes are assigned: by ONNX Runtime itself, on small graphs.

    Constants are folded by then. In float16 a CPU session puts casts around what it cannot compute,
    which says nothing.
    """
    for precision in (Precision.FP32, Precision.INT8):
        for name, model in tiny[precision].items():
            made = optimised(model, tmp_path, session_entries())
            assert list(strangers(made, folded=True)) == [], f"{name} in {precision}"


def test_default_options_would_break_int8(tiny, tmp_path: Path) -> None:
    """ONNX Runtime then puts int32 biases behind a node that has no CUDA kernel."""
    made = optimised(tiny[Precision.INT8][GraphName.IMAGE_ENCODER], tmp_path, {})
    found = list(strangers(made, folded=True))
    assert found
    assert {(stranger.op_type, stranger.types[0]) for stranger in found} == {
        ("DequantizeLinear", "int32")
    }


def optimised(model: onnx.ModelProto, folder: Path, entries: dict[str, str]) -> onnx.ModelProto:
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    rng = np.random.default_rng(0)
    for tensor in whole.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            array = rng.integers(-3, 4, tuple(tensor.dims)).astype(dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    for key, value in entries.items():
        if key != "session.disable_cpu_ep_fallback":
            options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(
        whole.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return onnx.load(folder / "optimised.onnx")


def node(op: str, inputs: list[str], outputs: list[str], **attributes) -> onnx.NodeProto:
    return onnx.helper.make_node(op, inputs, outputs, name=f"the_{op}", **attributes)


def test_what_has_no_kernel_is_named() -> None:
    tokens, words = np.zeros((2, 5), np.int64), np.zeros((2, 5, 8), np.float32)
    model = model_of([node("ArgMax", ["tokens"], ["y"], axis=1)], tokens=tokens)
    assert list(strangers(model)) == [Stranger("ArgMax", "the_ArgMax", ("int64",))]
    assert not list(strangers(model_of([node("ArgMax", ["words"], ["y"])], words=words)))
    shaped = [node("Shape", ["words"], ["s"]), node("Slice", ["s", "one", "two"], ["y"])]
    one = np.ones(1, np.int64)
    assert "the_Shape" in {
        s.name for s in strangers(model_of(shaped, words=words, one=one, two=one))
    }


def test_an_open_kernel_takes_no_later_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    softmax = model_of([node("Softmax", ["x"], ["y"])], x=np.zeros((2, 3), np.float32))
    assert not list(strangers(softmax))  # defined anew in 13, and the kernel is from 13 on
    older = [Kernel(11, None, {"T": frozenset({"float"})})]
    monkeypatch.setitem(table()[1], "Softmax", older)
    assert list(strangers(softmax))
    monkeypatch.setitem(table()[1], "Softmax", [Kernel(11, 13, older[0].types)])
    assert not list(strangers(softmax))
