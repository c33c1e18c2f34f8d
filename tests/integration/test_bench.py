"""cris-bench: the protocol on a tiny model, its record, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from cris_bench import cli
from cris_bench.timing import Timing, interleave, paired_ratio
from cris_deploy.errors import InputError
from cris_train import checkpoint
from cris_train.model import TABLE_1, Cris, CrisConfig
from tests.models import randomised


def test_rounds_are_interleaved_and_warmup_is_not_counted() -> None:
    calls: list[str] = []
    timings = interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, warmup=2, iterations=3
    )
    assert calls == ["a", "b"] * 5
    assert [(t.name, len(t.seconds)) for t in timings] == [("a", 3), ("b", 3)]


def test_ratio_is_taken_within_rounds() -> None:
    # The machine slows down by a factor of ten; each round still says 2.
    slow = Timing("slow", (0.2, 2.0, 2.0))
    fast = Timing("fast", (0.1, 1.0, 1.0))
    assert paired_ratio(slow, fast) == pytest.approx(2.0)
    assert slow.median_ms == pytest.approx(2000)
    assert slow.fps == pytest.approx(0.5)


def test_record_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    path = checkpoint.save(tmp_path / "tiny.pth", randomised(Cris(CrisConfig.tiny())))
    flags = ["--ckpt", str(path), "--warmup", "1", "--iterations", "3", "--int8"]
    flags += ["--expressions", "3"]
    record = tmp_path / "out" / "record.json"
    assert cli.main([*flags, "--json", "-o", str(record)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(record.read_text())
    found = {entry["timing"]["name"]: entry for entry in printed["contestants"]}
    assert all(len(entry["timing"]["seconds"]) == 3 for entry in found.values())
    assert next(iter(found)) == "PyTorch eager fp32"
    assert found["onnxruntime fp32"]["logit_error"] < 1e-4
    assert found["onnxruntime int8"]["logit_error"] > 1e-4  # another graph, really
    assert found["onnxruntime fp32, 3 expressions"]["expressions"] == 3
    assert printed["paper_fps"] is None  # the paper did not measure this model
    assert printed["machine"]["cores"] >= 1
    assert not list(tmp_path.glob("*.bundle"))


def test_paper_figure_is_that_of_the_full_model() -> None:
    from cris_bench.network import PAPER_FPS

    assert PAPER_FPS == 19.22
    assert len(TABLE_1) == 7


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--iterations", "0"], "--iterations"),
        (["--warmup", "-1"], "--warmup"),
        (["--threads", "0"], "--threads"),
        (["--expressions", "0"], "--expressions"),
        (["--ckpt", "missing.pth"], "no such checkpoint"),
    ],
)
def test_bad_flags(capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    assert cli.main(flags) == 2
    assert said in capsys.readouterr().err


def test_options_are_checked_without_a_console() -> None:
    from cris_bench.network import NetworkOptions

    with pytest.raises(InputError, match="--iterations"):
        NetworkOptions(iterations=-3)
