"""What a job has to do: found, divided, left out where it is done, and read."""

from pathlib import Path
from typing import Any

import pytest

pa = pytest.importorskip("pyarrow", reason="Ray is not installed: make .venv-ray/.installed")
import pyarrow.parquet as pq  # noqa: E402

from cris_deploy.batch.reading import Reader  # noqa: E402
from cris_deploy.batch.sources import PORTION, Input  # noqa: E402
from cris_deploy.errors import InputError  # noqa: E402


def table(path: Path, rows: list[dict[str, Any]], group: int = 1000, **types: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(types) if types else None
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=group)
    return path


def test_pictures_of_a_folder_in_portions(tmp_path: Path) -> None:
    names = sorted(
        [f"{number:03}.png" for number in range(PORTION)] + ["deep/a.JPG", "deep/b.webp"]
    )
    (tmp_path / "deep").mkdir()
    for name in [*names, "notes.txt", ".hidden.png", "deep/.x.png"]:
        (tmp_path / name).write_bytes(b"x")
    for text in (str(tmp_path), f"file://{tmp_path}", f"{tmp_path}/"):
        first, second = Input(text, ["a"]).portions(set())
        assert [*first.sources, *second.sources] == names
        assert len(first.sources) == PORTION
        assert first.name != second.name
    # What is done is left out, and what is left keeps its name.
    (rest,) = Input(str(tmp_path), ["a"]).portions(set(first.sources))
    assert rest == second
    assert list(Input(str(tmp_path), ["a"]).portions(set(names))) == []


def test_one_picture(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png)
    given = Input(str(tmp_path / "a.png"), ["x", "y"])
    (portion,) = given.portions(set())
    (asked,) = Reader(given.folder, given.expressions).read(portion)
    assert (asked.source, asked.image, asked.expressions) == ("a.png", png, ("x", "y"))


def test_rows_of_parquet_across_row_groups(tmp_path: Path, png: bytes) -> None:
    count = 2 * PORTION + 10
    rows = [{"image": png + bytes([n]), "expression": f"e{n}"} for n in range(count)]
    table(tmp_path / "in" / "rows.parquet", rows, group=PORTION + 5)
    given = Input(str(tmp_path / "in"), [])
    done = {"rows.parquet#0", f"rows.parquet#{PORTION + 6}"}
    portions = list(given.portions(done))
    assert [p.group for p in portions] == [0, 1, 1] if len(portions) == 3 else [0, 0, 1, 1]
    reader = Reader(given.folder, given.expressions)
    asked = [one for portion in portions for one in reader.read(portion)]
    numbers = [int(one.source.partition("#")[2]) for one in asked]
    assert numbers == [n for n in range(count) if f"rows.parquet#{n}" not in done]
    for number, one in zip(numbers, asked, strict=True):
        assert (one.image, one.expressions, one.path) == (
            png + bytes([number]),
            (f"e{number}",),
            None,
        )


def test_images_by_path_and_lists_of_expressions(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.png").write_bytes(png)
    outside = tmp_path / "outside.png"
    outside.write_bytes(png)
    rows = [
        {"image": "a.png", "expressions": ["x", "y"]},
        {"image": str(outside), "expressions": ["x"]},
        {"image": f"file://{outside}", "expressions": ["x"]},
        {"image": "none.png", "expressions": ["x"]},
        {"image": None, "expressions": ["x"]},
        {"image": "a.png", "expressions": []},
        {"image": "a.png", "expressions": None},
        {"image": "no://where", "expressions": ["x"]},
    ]
    table(tmp_path / "deep/rows.parquet", rows)
    for text in (tmp_path, tmp_path / "deep/rows.parquet"):
        if text.is_dir():
            outside.rename(tmp_path / "outside")  # a folder has pictures, or Parquet files
            (tmp_path / "deep/a.png").rename(tmp_path / "deep/a")
            with pytest.raises(InputError, match="deep/rows"):
                list(Input(str(text), ["x"]).portions(set()))
            (tmp_path / "outside").rename(outside)
            (tmp_path / "deep/a").rename(tmp_path / "deep/a.png")
            continue
        given = Input(str(text), [])
        (portion,) = given.portions(set())
        asked = Reader(given.folder, given.expressions).read(portion)
        assert [one.expressions for one in asked[:3]] == [("x", "y"), ("x",), ("x",)]
        assert [one.image for one in asked[:3]] == [png] * 3
        assert [one.path for one in asked[:2]] == ["a.png", str(outside)]
        problems = [one.problem or "" for one in asked[3:]]
        for problem, part in zip(
            problems,
            ("cannot be read", "image is empty", "expression is", "expression is", "no path"),
            strict=True,
        ):
            assert part in problem


def test_images_as_hugging_face_has_them(tmp_path: Path, png: bytes) -> None:
    rows = [{"image": {"bytes": png, "path": "a.png"}, "expression": "x"}]
    given = Input(str(table(tmp_path / "rows.parquet", rows)), [])
    (portion,) = given.portions(set())
    (asked,) = Reader(given.folder, given.expressions).read(portion)
    assert (asked.image, asked.path) == (png, "a.png")


@pytest.mark.parametrize(
    ("files", "expressions", "message"),
    [
        ({}, ["a"], "neither pictures nor Parquet"),
        ({"a.png": [], "b.parquet": [{"image": "x"}]}, ["a"], "both pictures and Parquet"),
        ({"a.png": []}, [], "EXPRESSION is missing"),
        ({"a.parquet": [{"picture": "x"}]}, ["a"], "no column image"),
        ({"a.parquet": [{"image": "x", "expression": "x"}]}, ["a"], "has its own"),
        ({"a.parquet": [{"image": "x"}]}, [], "0 of the columns"),
        ({"a.parquet": [{"image": "x", "expression": "", "expressions": []}]}, [], "2 of the"),
        ({"a.parquet": []}, ["a"], "cannot be read as Parquet"),
    ],
)
def test_inputs_that_cannot_be(
    tmp_path: Path, files: dict[str, list[dict[str, Any]]], expressions: list[str], message: str
) -> None:
    for name, rows in files.items():
        if rows:
            table(tmp_path / name, rows)
        else:
            (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=message):
        list(Input(str(tmp_path), expressions).portions(set()))


@pytest.mark.parametrize("text", ["{folder}/none", "nowhere://x"])
def test_places_that_are_not_there(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"^IMAGE .*(does not exist|no URL)"):
        Input(text.format(folder=tmp_path), ["a"])
