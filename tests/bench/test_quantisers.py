"""The head-to-head of quantisers: what it computes, what it refuses, and once from end to end."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from cris_bench.quantisers import judge
from cris_bench.quantisers.__main__ import main
from cris_bench.quantisers.judge import Answers
from cris_bench.quantisers.makers import Elsewhere, largest_weight
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.errors import InputError
from cris_export.export import export
from cris_export.options import ExportOptions
from cris_export.proof.float32 import Reference
from cris_train import checkpoint
from cris_train.model import Cris, CrisConfig
from tests.helpers.models import randomised

DEMO = Path(__file__).parents[2] / "train" / "demo"


def test_interval_holds_the_mean() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    found = judge.bootstrap(values, np.mean)
    assert found.value == pytest.approx(values.mean())
    # Two standard errors to either side.
    assert found.high - found.low == pytest.approx(4 * values.std() / 20, rel=0.1)
    assert found == judge.bootstrap(values, np.mean)


def test_answers_are_compared_one_by_one() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 8, 8)).astype(np.float32)
    masks = logits > 0
    exact = Answers(tuple(logits), tuple(masks), np.array([0.5, 0.6, 0.7]))
    same = judge.compare(exact, exact)
    assert (same.mask_iou, same.mean_iou) == (1.0, pytest.approx(60.0))
    assert same.worst_correlation == pytest.approx(1.0)
    assert same.difference is not None
    assert same.difference.low == same.difference.high == 0.0
    wrong = np.array([logits[0], logits[1], -logits[2]])
    found = judge.compare(exact, Answers(tuple(wrong), tuple(masks), np.array([0.5, 0.6, 0.4])))
    assert found.worst_correlation == pytest.approx(-1.0)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(-10.0)


def test_largest_weight_is_of_layers_that_multiply_integers() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[1, 2] x) => (float[1, 2] y)
        <float s = {0.5}, int8 z = {0}, int8[2, 2] w = {-61, 3, 4, 5}, int8[2, 2] v = {99, 1, 1, 1}>
        {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            wd = DequantizeLinear(w, s, z)
            vd = DequantizeLinear(v, s, z)
            m = MatMul(d, wd)
            y = MatMul(m, vd)
        }
    """
    assert largest_weight([ir.from_onnx_text(text)]) == 61


def test_a_tool_that_fails_says_where(tmp_path: Path) -> None:
    feeds = {stage: [{"x": np.zeros(1)}] for stage in GraphName}
    (tmp_path / "image_encoder.onnx").touch()
    with pytest.raises(InputError, match="nobody failed at image_encoder: KeyError: 'nobody'"):
        Elsewhere(Path(sys.executable), "nobody")(Reference(tmp_path, feeds, []))


def test_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    path = checkpoint.save(tmp_path / "tiny.pth", randomised(Cris(CrisConfig.tiny())))
    bundle = export(ExportOptions(path, min_iou=0.0, max_logit_error=9.0)).bundle
    pairs = str(DEMO / "samples.jsonl")
    made, record = tmp_path / "made", tmp_path / "record.json"
    command = ["measure", str(made), "--bundle", str(bundle), "--pairs", pairs, "--rounds", "2"]
    assert main(command) == 2
    assert "has no makers.json: run" in capsys.readouterr().err
    make = ["make", "--bundle", str(bundle), "--calibration", pairs, "-o", str(made), "--only"]
    assert main([*make, "ours", "ort u8 sites"]) == 0
    assert main([*command, "--backend", "onnxruntime", "-o", str(record)]) == 0
    assert "ort u8 sites" in capsys.readouterr().out
    rows = {row["made"]["name"]: row for row in json.loads(record.read_text())["rows"]}
    assert list(rows) == ["float32", "ours", "ort u8 sites"]
    for name, row in rows.items():
        (ran,) = row["ran"]
        assert ran["problem"] is None
        assert len(ran["seconds"]) == 2
        assert 0.5 < ran["pairs"]["worst_correlation"] <= 1.0 + 1e-9
        assert (row["int8"] > 0.5) == (name != "float32")
    assert main([*command[:3], str(made / "ours.bundle"), *command[4:]]) == 2
    assert "is int8: give a float32 one" in capsys.readouterr().err
    half = ["half", "--bundle", str(bundle), "--calibration", pairs, "--pairs", pairs]
    # The same function through numbers that float16 does not hold: ours sees that.
    stretched = [*half, "--stretch", str(2.0**20), "-o", str(record)]
    assert main(stretched) == 0
    ours, plain = json.loads(record.read_text())["rows"]
    assert 0 < ours["logit_error"] < 1
    assert ours["single"] > 0
    assert plain["problem"] is not None
