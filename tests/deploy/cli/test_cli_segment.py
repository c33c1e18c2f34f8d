"""cris-segment: one image, folders, lists, bad entries, exit codes, what is written."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.bundle.reading import ENGINES
from cris_deploy.cli import guarded
from cris_deploy.cli.jobs import BadEntry, Job, read_jobs
from cris_deploy.cli.segment import main, segment_jobs
from cris_deploy.errors import InputError
from tests.helpers.plans import write_plans
from tests.stand_ins.fake_machine import machine

__all__ = ["machine"]

coco = pytest.importorskip("pycocotools.mask")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images (two share a stem), a text file and a hidden file."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for name, shape in (("a.png", (40, 60)), ("a.jpg", (30, 20)), ("b c.png", (17, 31))):
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image")
    return folder


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_one_image(tiny_bundle, folder, tmp_path, capsys):
    out = tmp_path / "out" / "deeper"
    assert main([str(tiny_bundle), str(folder / "a.png"), "a cat", "dog", "-o", str(out)]) == 0
    assert names(out) == ["a.mask-1.png", "a.mask-2.png", "a.overlay.png"]
    with Engine(tiny_bundle) as engine:
        for index, expression in enumerate(("a cat", "dog"), 1):
            mask = cv2.imread(str(out / f"a.mask-{index}.png"), cv2.IMREAD_UNCHANGED)
            assert mask.dtype == np.uint8
            expected = engine.segment(folder / "a.png", expression).mask
            np.testing.assert_array_equal(mask, np.where(expected, 255, 0))
    overlay = cv2.imread(str(out / "a.overlay.png"))
    assert overlay.shape[0] > 40  # with a legend, since there are two
    printed = capsys.readouterr()
    assert "a.mask-2.png" in printed.out
    assert "'dog'" in printed.out
    assert printed.err == ""


def test_one_expression_has_no_legend(tiny_bundle, folder, tmp_path):
    assert main([str(tiny_bundle), str(folder / "a.png"), "a cat", "-o", str(tmp_path / "o")]) == 0
    assert cv2.imread(str(tmp_path / "o" / "a.overlay.png")).shape == (40, 60, 3)


def test_json(tiny_bundle, folder, tmp_path, capsys):
    out = tmp_path / "o"
    arguments = [str(tiny_bundle), str(folder / "a.png"), "a cat", "much too long", "--json"]
    assert main([*arguments, "-o", str(out), "--threads", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["width"], document["height"]) == (60, 40)
    assert document["errors"] == []
    assert Path(document["overlay"]) == out / "a.overlay.png"
    first, second = document["results"]
    assert [first["truncated"], second["truncated"]] == [False, True]
    mask = cv2.imread(first["mask"], cv2.IMREAD_UNCHANGED) > 0
    np.testing.assert_array_equal(coco.decode(first["rle"]), mask)
    assert first["area"] == mask.sum()
    rows, columns = np.nonzero(mask)
    assert first["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert 0 <= first["score"] <= 1


def test_folder(tiny_bundle, folder, tmp_path, capsys):
    out = tmp_path / "o"
    assert main([str(tiny_bundle), str(folder), "a cat", "-o", str(out), "--json"]) == 0
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(d["image"]).name for d in documents] == ["a.jpg", "a.png", "b c.png"]
    assert names(out) == [
        *("a-2.mask-1.png", "a-2.overlay.png", "a.mask-1.png", "a.overlay.png"),
        *("b c.mask-1.png", "b c.overlay.png"),
    ]


LIST = """\
{"image": "images/a.png", "expression": "a cat"}
{"image": "images/a.png", "expressions": ["x", " ", "y"]}

{"image": "images/none.png", "expressions": ["x", "y"]}
not json
{"image": "images/notes.txt", "expression": "x"}
{"image": 5, "expression": "x"}
["image"]
{"image": "images/a.png"}
{"image": "images/a.png", "expression": "x", "expressions": ["y"]}
{"image": "images/a.png", "expressions": "x"}
{"image": "images/a.png", "expressions": []}
{"image": "images/a.png", "expression": 3}
{"image": "images/b c.png", "expression": "left"}
"""


def test_list_with_bad_entries(tiny_bundle, folder, tmp_path, capsys):
    path = tmp_path / "list.jsonl"
    path.write_text(LIST)
    out = tmp_path / "o"
    assert main([str(tiny_bundle), str(path), "-o", str(out), "--json"]) == 2
    printed = capsys.readouterr()
    errors = printed.err.splitlines()
    lines = [2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert len(errors) == len(lines)  # one each, although line 4 has two expressions
    for line, error in zip(lines, errors, strict=True):
        assert error.startswith(f"cris-segment: error: line {line}: ")
    documents = {d["line"]: d for d in map(json.loads, printed.out.splitlines())}
    assert sorted(documents) == [1, *lines, 14]
    assert [r["expression"] for r in documents[2]["results"]] == ["x", "y"]
    assert documents[4]["results"] == []
    assert names(out) == [
        *("a-2.mask-1.png", "a-2.mask-3.png", "a-2.overlay.png"),
        *("a.mask-1.png", "a.overlay.png", "b c.mask-1.png", "b c.overlay.png"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"hello", "is text"), (b"", "is empty"), (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG")],
)
def test_bad_image(tiny_bundle, tmp_path, capsys, content, message):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    out = tmp_path / "o"
    assert main([str(tiny_bundle), str(path), "a cat", "dog", "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert "Traceback" not in error
    assert names(out) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bundle}", "{folder}/a.png"], "EXPRESSION is missing"),
        (["{bundle}", "{folder}/a.png", ""], "no words"),
        (["{bundle}", "{folder}/none.png", "x"], "does not exist"),
        (["{folder}", "{folder}/a.png", "x"], "no manifest"),
        (["{folder}/none", "{folder}/a.png", "x"], "does not exist"),
        (["{bundle}", "{folder}/a.png", "x", "--threads", "0"], "threads"),
        (["{bundle}", "{folder}/a.png", "x", "--max-pixels", "9"], "over the limit of 9"),
        (["{bundle}", "{folder}/a.png", "x", "-o", "{folder}/notes.txt"], "cannot be made"),
        (["{bundle}", "{folder}", "x", "-o", "{folder}"], "folder of the images"),
        (["{bundle}", "{bundle}", "x"], "has no images"),
        (["{bundle}", "{folder}/none.jsonl"], "cannot be read"),
        (["{bundle}", "{folder}/none.jsonl", "x"], "has its own"),
    ],
)
def test_exit_code_2_and_one_line(
    tiny_bundle, folder, tmp_path, monkeypatch, capfd, arguments, message
):
    monkeypatch.chdir(tmp_path)
    filled = [a.format(bundle=tiny_bundle, folder=folder) for a in arguments]
    assert main(filled) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("cris-segment: error: ")
    assert message in printed.err
    assert names(folder) == [".hidden.png", "a.jpg", "a.png", "b c.png", "notes.txt"]


def test_unknown_backend_is_the_parsers():
    with pytest.raises(SystemExit) as caught:
        main(["b", "i", "x", "--backend", "magic"])
    assert caught.value.code == 2


def test_list_without_entries(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("\n \n")
    with pytest.raises(InputError, match="no entries"):
        read_jobs(path, [])


def test_list_encodings(tmp_path):
    path = tmp_path / "x.JSONL"
    entry = '{"image": "ä.png", "expression": "左"}'.encode()
    path.write_bytes(b"\xef\xbb\xbf" + entry + b"\r\n\xff\xfe\n" + entry)
    first, second, third = read_jobs(path, [])
    assert first == Job(tmp_path / "ä.png", ("左",), "ä", 1)
    assert isinstance(second, BadEntry)
    assert third == Job(tmp_path / "ä.png", ("左",), "ä-2", 3)


def test_names_never_collide(tmp_path):
    path = tmp_path / "x.jsonl"
    images = ["a.png", "a-2.png", "A.png", "b/a.png", "a-2.jpg", "c" * 300 + ".png"]
    path.write_text("".join(json.dumps({"image": i, "expression": "x"}) + "\n" for i in images))
    found = [job.name.casefold() for job in read_jobs(path, [])]
    assert len(set(found)) == len(images)
    assert all(len(name) < 200 for name in found)


def test_function_without_the_parser(tiny_bundle, folder, tmp_path):
    jobs = read_jobs(folder / "a.png", ["a cat"])
    (report,) = segment_jobs(tiny_bundle, jobs, tmp_path / "o", threads=1)
    assert report.problems == ()
    assert report.results[0].segmentation.expression == "a cat"


def test_output_that_cannot_be_written(tiny_bundle, folder, tmp_path, capsys):
    out = tmp_path / "o"
    (out / "a.mask-1.png").mkdir(parents=True)  # in the way
    assert main([str(tiny_bundle), str(folder / "a.png"), "a cat", "-o", str(out)]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert names(out) == ["a.mask-1.png"]  # no partial file, no overlay


def test_as_a_process(tiny_bundle, folder, tmp_path):
    # Outside pytest's capture: no library prints a line of its own.
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:2000])
    command = [sys.executable, "-m", "cris_deploy.cli.segment", str(tiny_bundle), str(folder)]
    result = subprocess.run(
        [*command, "far too long", "-o", str(tmp_path / "o"), "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "broken.png" in result.stderr
    assert len(result.stdout.splitlines()) == 4


def test_code_of_plans_runs_if_a_flag_says_so(machine, folder, tmp_path, capsys):
    for plan in (machine.bundle / ENGINES).iterdir():
        plan.unlink()
    write_plans(machine.bundle, version_compatible=True)
    command = [str(machine.bundle), str(folder / "a.png"), "a", "-o", str(tmp_path / "o")]
    command += ["--backend", "tensorrt", "--device", "cuda"]
    assert main(command) == 2
    assert "allow_plan_code" in capsys.readouterr().err
    assert main([*command, "--allow-plan-code"]) == 0


def test_interrupt_and_closed_pipe(capsys):
    def interrupt() -> int:
        raise KeyboardInterrupt

    assert guarded("x", interrupt) == 130
    assert capsys.readouterr().err == "x: interrupted\n"


def test_the_bundle_that_is_meant(tiny_bundle, folder, tmp_path, capsys):
    digest = hashlib.sha256((tiny_bundle / "manifest.json").read_bytes()).hexdigest()
    command = [str(tiny_bundle), str(folder / "a.png"), "a", "-o", str(tmp_path / "o")]
    assert main([*command, "--manifest-sha256", digest, "--trust-plans"]) == 0
    assert main([*command, "--manifest-sha256", "0" * 64]) == 2
    assert f"has the SHA-256 {digest}, expected 0000" in capsys.readouterr().err
