"""What a job writes: the engine's results, whole files, and what they say is done."""

from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow", reason="Ray is not installed: make .venv-ray/.installed")
import pyarrow.parquet as pq  # noqa: E402

from cris_deploy import Engine  # noqa: E402
from cris_deploy.batch.parts import TRIES, Facts, Output, segment  # noqa: E402
from cris_deploy.batch.reading import Asked  # noqa: E402
from cris_deploy.errors import CrisError, InputError  # noqa: E402

FACTS = Facts("0" * 64, "in", ("a",), None, 100, "auto", "auto")


def row(source: str, **more: Any) -> dict[str, Any]:
    return {"source": source, **more}


def test_rows_are_the_engine_s_results(engine: Engine, png: bytes, tmp_path: Path) -> None:
    asked = [
        Asked("a.png", "a.png", png, ("a b", " ", "c")),
        Asked("b.png", "b.png", problem="it is gone"),
        Asked("c.png", None, b"some text", ("a",)),
    ]
    output = Output(str(tmp_path))
    output.write("part-1.parquet", list(segment(engine, asked, 0.4)))
    rows = pq.read_table(tmp_path / "part-1.parquet").to_pylist()
    assert [(r["source"], r["image"], r["expression"]) for r in rows] == [
        ("a.png", "a.png", "a b"),
        ("a.png", "a.png", " "),
        ("a.png", "a.png", "c"),
        ("b.png", "b.png", None),
        ("c.png", None, "a"),
    ]
    for found in (rows[0], rows[2]):
        right = engine.segment(png, found["expression"], threshold=0.4)
        assert found["rle"] == right.rle()
        assert found["box"] == (None if right.box is None else list(right.box))
        assert (found["area"], found["truncated"]) == (right.area, right.truncated)
        # In a batch a logit may differ in its last bits.
        assert found["score"] == pytest.approx(right.score, abs=1e-6)
        assert found["confidence"] == pytest.approx(right.confidence, abs=1e-6)
        assert found["error"] is None
    for found, image, words in ((rows[1], png, " "), (rows[4], b"some text", "a")):
        with pytest.raises(CrisError) as error:
            engine.segment(image, words)
        assert found["error"] == str(error.value)
        assert found["rle"] is None
    assert rows[3]["error"] == "it is gone"
    done = output.done()
    assert (done.rows, done.errors, done.sources) == (5, 3, {"a.png", "b.png", "c.png"})


def test_a_source_in_two_files_is_an_error(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    output.write("part-1.parquet", [row("a"), row("b")])
    output.write("part-1.parquet", [row("a"), row("b")])  # once more is the same file
    assert output.done().rows == 2
    output.write("part-2.parquet", [row("b")])
    with pytest.raises(InputError, match="b in two files"):
        output.done()


def test_an_output_stays_of_one_job(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "deep" / "out"))
    output.claim(FACTS)
    other = Facts("0" * 64, "in", ("a",), 0.5, 100, "auto", "auto")
    output.claim(other)  # nothing was done yet
    output.write("part-1.parquet", [row("a")])
    output.claim(other)
    with pytest.raises(InputError, match=r"begun with threshold 0\.5, now it is None"):
        output.claim(FACTS)


def test_what_a_kill_left_goes(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    output.claim(FACTS)
    assert output.begin("part-1.parquet")
    left = tmp_path / ".part-1.parquet.abc.partial"
    left.write_bytes(b"half")
    output.claim(FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["_job.json"]


def test_a_portion_is_given_up_when_workers_are_lost_over_it(tmp_path: Path) -> None:
    output = Output(str(tmp_path))
    assert [output.begin("part-1.parquet") for _ in range(TRIES + 1)] == [True] * TRIES + [False]
    assert output.begin("part-2.parquet")
    output.write("part-1.parquet", [row("a", error="lost")])
    assert output.has("part-1.parquet")
    assert not output.has("part-2.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {
        "part-1.parquet",
        ".part-2.parquet.0.begun",
    }


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be used"):
        Output(str(tmp_path / "file" / "out")).claim(FACTS)
    with pytest.raises(InputError, match="output nowhere://x"):
        Output("nowhere://x")
