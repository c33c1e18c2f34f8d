"""`cris-bench serve`, `batcher`, `ways` and `video`: real runs on a small bundle."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cris_bench.cli import main
from cris_bench.scopes.ways import Way
from cris_bench.ways import askers
from cris_bench.ways.triton_server import why_not as why_no_triton
from cris_bench.ways.web_servers import why_no_ray
from tests.helpers.triton import VENV as TRITON

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


@pytest.mark.filterwarnings("ignore::cris_deploy.TruncationWarning")  # it reads few words
def test_ways(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, nowhere = tmp_path / "ways.json", str(tmp_path / "none")
    command = ["ways", str(tiny_bundle), "--turns", "3", "--backend", "onnxruntime"]
    options = ["--triton-venv", str(TRITON), "--ray-venv", nowhere, "-o", str(output)]
    assert main([*command, *options]) == 0
    shown = capsys.readouterr().out
    record = json.loads(output.read_text())
    assert record["bundle"] == tiny_bundle.name
    assert [each["way"] for each in record["ways"]] == list(Way)
    for each in record["ways"]:
        present = each["missing"] is None
        assert len(each["new_ms"]) == len(each["known_ms"]) == (3 if present else 0)
        assert each["way"] in shown
    missing = {each["way"]: each["missing"] for each in record["ways"] if each["missing"]}
    if why_no_ray(Path(nowhere)):  # else it is in this environment
        assert f"{nowhere} has no Ray" in missing[Way.RAY]
    if why_no_triton(TRITON) is None:
        assert not missing.keys() - {Way.RAY}


def test_ways_with_bad_input(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ways", str(tiny_bundle), "--turns", "1"]) == 2
    assert "--turns is 1" in capsys.readouterr().err
    assert main(["ways", str(tiny_bundle), "--image-size", "8"]) == 2
    assert "--image-size 8" in capsys.readouterr().err
    assert "no nvidia-pytriton" in str(why_no_triton(tmp_path))


def test_a_way_that_gives_another_mask_is_an_error(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    @contextmanager
    def wrong(_: object) -> Iterator[Any]:
        yield lambda picture, words: "0"

    monkeypatch.setattr(askers, "batched", wrong)
    nowhere = str(tmp_path / "none")
    environments = ["--triton-venv", nowhere, "--ray-venv", nowhere]
    assert main(["ways", str(tiny_bundle), "--turns", "2", *environments]) == 2
    assert "batcher gave another mask" in capsys.readouterr().err
