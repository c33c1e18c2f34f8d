"""`cris-bench kernels`: the record, the table and bad input, on a tiny image."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("cris_deploy._kernels", reason="the extension is not built")
bench = pytest.importorskip("cris_bench.report.kernels")

SHORT = ["--size", "64x48", "--iterations", "4", "--warmup", "1", "--threads", "1"]


@pytest.mark.parametrize("content", bench.Content)
def test_record(content: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "records" / "kernels.json"
    logits = content.value  # type: ignore[attr-defined]
    assert bench.main([*SHORT, "--logits", logits, "--json", "-o", str(output)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(output.read_text())
    (size,) = record["sizes"]
    assert (size["height"], size["width"], size["decided"]) == (48, 64, 0)
    assert all(len(timing["seconds"]) == 4 for timing in size["timings"])
    names = [timing["name"] for timing in size["timings"]]
    assert names[0] == "reference"
    assert {"mask", "RLE"} <= set(names)
    assert record["options"]["content"] == logits
    assert record["machine"]["versions"]["numpy"]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(SHORT) == 0
    text = capsys.readouterr().out
    assert "64 x 48" in text
    assert "RLE" in text


def test_no_iterations(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--iterations", "0"]) == 2
    assert "iterations" in capsys.readouterr().err


def test_not_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("640", "640x", "0x480", "640x-1"):
        assert bench.main(["--size", size]) == 2
        assert "--size" in capsys.readouterr().err
