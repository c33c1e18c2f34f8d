"""`cris-segment --ray` as a whole: every picture once, what was done not again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="Ray is not installed: make .venv-ray/.installed")
import pyarrow.parquet as pq

from cris_deploy import Engine
from cris_deploy.batch.parts import Output, segment
from cris_deploy.batch.reading import Reader
from cris_deploy.batch.sources import PORTION, Input
from cris_deploy.cli.segment import main
from tests.helpers.ray_app import environment, ray_python

WORDS = ["a b", "c"]


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [ray_python(), "-m", "cris_deploy.cli.segment", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return found


def test_a_folder_equals_the_engine_and_is_resumed(
    tiny_bundle: Path, engine: Engine, png: bytes, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    pictures = {f"{number:03}.png": png + bytes([number]) for number in range(PORTION + 20)}
    pictures["bad.png"] = b"some text"
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    command = (tiny_bundle, folder, *WORDS, "--ray", "--workers", 2, "--threads", 1, "-o", out)
    command = (*command, "--backend", "onnxruntime", "--json")
    # A job that was cut off: one of its portions is done.
    given = Input(str(folder), WORDS)
    first, second = given.portions(set())
    asked = Reader(given.folder, given.expressions).read(first)
    Output(str(out)).write(first.name, list(segment(engine, asked)))
    before = (out / first.name).stat()
    done = run(*command)
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout) == {"output": str(out), "rows": 2 * len(pictures), "errors": 2}
    assert "2 rows have an error" in done.stderr
    after = (out / first.name).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert {path.name for path in out.glob("part-*")} == {first.name, second.name}
    found = {(row["source"], row["expression"]): row for row in rows(out)}
    assert set(found) == {(name, words) for name in pictures for words in WORDS}
    for (name, words), row in found.items():
        if name == "bad.png":
            assert "is text" in row["error"]
        else:
            assert row["rle"] == engine.segment(pictures[name], words).rle()
    # Whoever asks for what is done does not even start Ray.
    again = run(*command)
    assert (again.stdout, again.returncode) == (done.stdout, 2)


def test_nothing_of_ray_is_imported_without_it(
    tiny_bundle: Path, png: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png)
    code = (
        "import sys; from cris_deploy.cli.segment import main; assert main(sys.argv[1:]) == 0; "
        "assert not {'ray', 'pyarrow'} & set(sys.modules)"
    )
    command = [ray_python(), "-c", code, tiny_bundle, tmp_path / "a.png", "a", "-o", tmp_path / "o"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers", "2"), "--workers is for --ray"),
        (("--gpus", "0.5"), "--gpus is for --ray"),
        (("--ray", "--reuse", "4"), "--reuse is for videos"),
        (("--ray", "--workers", "0"), "workers is 0"),
        (("--ray", "--threshold", "2"), "threshold is 2"),
        (("--ray", "--threads", "0"), "threads is 0"),
        (("--ray", "--gpus", "-1"), "gpus is -1"),
    ],
)
def test_arguments_that_cannot_be(
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    command = [str(tiny_bundle), str(tmp_path), "a", *arguments, "-o", str(tmp_path / "out")]
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not (tmp_path / "out").exists()


def test_ray_that_is_missing_is_said(
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "cris_deploy.batch.job", raising=False)
    assert main([str(tiny_bundle), str(tmp_path), "a", "--ray"]) == 2
    assert "pip install 'cris-deploy[ray]'" in capsys.readouterr().err
