"""int8 for a trained model: the whole way, on CPU backends, and what is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cris_deploy import Engine
from cris_deploy.backends import Compute, Device
from cris_deploy.backends.openvino import computes
from cris_deploy.bundle import Bundle, GraphName, Precision
from cris_deploy.errors import BackendError, InputError
from cris_export import cli
from cris_export.export import ExportOptions, ExportReport, export
from cris_train import checkpoint
from cris_train.model import Cris, CrisConfig
from tests.models import randomised

DEMO = Path(__file__).parents[2] / "train" / "demo"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    options = ExportOptions(
        DEMO / "scenes.pth",
        output=tmp_path_factory.mktemp("int8") / "demo.bundle",
        precision=Precision.INT8,
        samples=DEMO / "samples.jsonl",
        calibration=DEMO / "samples.jsonl",
    )
    return export(options)


def test_trained_model_keeps_its_masks(report: ExportReport) -> None:
    # 0.985 when written; the budget of int8 is 0.95
    assert report.parity.mean_iou >= 0.97
    share = report.types[GraphName.FULL].multiply_adds
    assert share["int8"] > 0.9 * sum(share.values())
    assert Bundle.open(report.bundle).manifest.precision is Precision.INT8


def test_backends_agree(report: ExportReport) -> None:
    pytest.importorskip("openvino")
    image = DEMO / "scene.png"
    expressions = ["the purple cross", "the leftmost red square"]
    logits = {}
    for backend in ("onnxruntime", "openvino"):
        with Engine(report.bundle, backend=backend, precision="int8") as engine:
            assert engine.info.compute == "int8"
            logits[backend] = [r.logits for r in engine.segment(image, expressions)]
    for mine, other in zip(*logits.values(), strict=True):
        # Integers are exact, but a value on the edge between two may fall to either side.
        assert np.corrcoef(mine.ravel(), other.ravel())[0, 1] > 0.998


def test_bfloat16_between_int8_layers(report: ExportReport) -> None:
    pytest.importorskip("openvino")
    image, expression = DEMO / "scene.png", "the purple cross"
    with Engine(report.bundle, backend="openvino", precision="int8") as engine:
        expected = engine.segment(image, expression).logits
        possible = computes(Precision.INT8, Device.CPU)
    if Compute.INT8_BF16 not in possible:
        with pytest.raises(BackendError, match="bfloat16 instructions"):
            Engine(report.bundle, backend="openvino", precision="int8-bf16")
        return
    assert possible[0] is Compute.INT8_BF16
    with Engine(report.bundle, backend="openvino") as engine:
        assert engine.info.compute == "int8-bf16"
        assert "int8-bf16 is this bundle's default here" in engine.info.reason
        found = engine.segment(image, expression).logits
    assert 1e-5 < 1 - np.corrcoef(found.ravel(), expected.ravel())[0, 1] < 2e-3


def test_one_graph_serves_all(report: ExportReport) -> None:
    """Signed and symmetric: TensorRT reads an unsigned zero point as a signed one."""
    for name in GraphName:
        proto = onnx.load(Bundle.open(report.bundle, verify=False).graph(name))
        weights = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
        pairs = [n for n in proto.graph.node if n.op_type in {"QuantizeLinear", "DequantizeLinear"}]
        assert pairs
        for pair in pairs:
            assert weights[pair.input[2]].dtype == np.int8
            assert not weights[pair.input[2]].any()


def test_tensorrt_rtx_builds_it(report: ExportReport) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    arguments = ["--bundle", str(report.bundle), "--engine", "tensorrt-rtx", "--target", "sm86"]
    assert cli.main(arguments) == 0
    assert len(list((report.bundle / "engines").glob("*.plan"))) == len(GraphName)
    with Engine(report.bundle, device="cpu") as engine:  # plans do not concern the rest
        assert engine.segment(DEMO / "scene.png", "the purple cross").mask.any()


def test_other_precisions_are_refused_with_the_flag(report: ExportReport) -> None:
    with pytest.raises(BackendError, match=r"precision fp16.*export with --fp16"):
        Engine(report.bundle, backend="onnxruntime", device="cpu", precision="fp16")


def test_layers_return_to_float_until_the_budget_is_met(tmp_path: Path) -> None:
    # The paper's initialisation leaves a tiny model's logits near zero, where rounding weighs most.
    torch.manual_seed(0)
    path = checkpoint.save(tmp_path / "tiny.pth", randomised(Cris(CrisConfig.tiny())))
    lines: list[str] = []
    options = ExportOptions(
        path, precision=Precision.INT8, calibration=DEMO / "samples.jsonl", min_iou=0.0
    )
    tiny = export(options, lines.append)
    found = [float(line.split(" by ")[1].split()[0]) for line in lines if " by 0." in line]
    released = [line for line in lines if "return to float32" in line]
    kept = tiny.types[GraphName.FULL].islands
    assert len(found) == len(released) + 1
    assert found[-1] >= 0.99 or len(released) == 4
    assert len(kept) == sum(int(line.split()[0]) for line in released[-1:])
    assert set(kept.values()) <= {"calibration_noise"}


def test_calibration_is_needed_and_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ckpt = ["--ckpt", str(DEMO / "scenes.pth"), "-o", str(tmp_path / "b")]
    assert cli.main([*ckpt, "--int8"]) == 2
    assert "--int8 and --calibration FILE go together" in capsys.readouterr().err
    assert cli.main([*ckpt, "--calibration", "x.jsonl"]) == 2
    assert cli.main([*ckpt, "--int8", "--calibration", str(tmp_path / "none.jsonl")]) == 2
    assert "--calibration" in capsys.readouterr().err
    lost = tmp_path / "lost.jsonl"
    lost.write_text(json.dumps({"image": "lost.png", "expression": "a cat"}))
    assert cli.main([*ckpt, "--int8", "--calibration", str(lost)]) == 2
    assert "lost.png does not exist (1 missing)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [lost]
    with pytest.raises(InputError, match="--calibration"):
        ExportOptions(DEMO / "scenes.pth", calibration=lost)
