"""`cris-bench serve`, `batcher` and `video`: real runs on a small bundle."""

import json
from pathlib import Path

import pytest

from cris_bench.cli import main

OPTIONS = "--no-self-test --threads 1"


def test_serve(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    output = tmp_path / "serve.json"
    command = ["serve", str(tiny_bundle), "--turns", "3", "--requests", "40", "--clients", "4"]
    assert main([*command, "--server-options", OPTIONS, "-o", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "40 requests of 4 clients: 0 failed" in shown
    record = json.loads(output.read_text())
    assert record["bundle"] == tiny_bundle.name
    assert [len(way["http_ms"]) for way in record["overheads"]] == [3, 3]
    assert record["load"]["requests"] == 40
    assert record["load"]["final_bytes"] > 0
    assert record["machine"]["cpu"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--turns", "0"], "--turns is 0"),
        (["--image", "missing.jpg"], "missing.jpg cannot be read"),
        (["--server-options", "--backend none"], "does not become ready"),
    ],
)
def test_serve_with_bad_input(
    tiny_bundle: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tiny_bundle), *options]) == 2
    assert message in capsys.readouterr().err


def test_batcher(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "batcher.json"
    command = ["batcher", str(tiny_bundle), "--threads", "3", "--pictures", "9", "--rounds", "2"]
    assert main([*command, "--backend", "onnxruntime", "-o", str(output)]) == 0
    assert "3 threads, batcher of 4" in capsys.readouterr().out
    ways = json.loads(output.read_text())["ways"]
    assert [way["masks"] for way in ways] == [9, 9, 9, 9, 9, 8, 8]
    assert {len(way["seconds"]) for way in ways} == {2}
    assert main(["batcher", str(tiny_bundle), "--threads", "0"]) == 2
    assert "--threads is 0" in capsys.readouterr().err


def test_video(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "video.json"
    command = ["video", str(tiny_bundle), "--frames", "30", "--rounds", "2", "--reuse", "12,255"]
    assert main([*command, "-o", str(output)]) == 0
    assert "--reuse 12" in capsys.readouterr().out
    exact, some, all_ = json.loads(output.read_text())["ways"]
    assert (exact["reuse"], exact["reused"], exact["mean_iou"]) == (None, 0, 1.0)
    assert 20 <= some["reused"] < 30  # nothing moves in the first 25 frames
    assert all_["reused"] == 29
    assert [len(way["seconds"]) for way in (exact, some, all_)] == [2, 2, 2]
    for options, message in ((["--reuse", "x"], "--reuse x"), (["--frames", "0"], "--frames is 0")):
        assert main(["video", str(tiny_bundle), *options]) == 2
        assert message in capsys.readouterr().err
    assert main(["video", str(tiny_bundle), "--video", str(tmp_path / "none.mp4")]) == 2
