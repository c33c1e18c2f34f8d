"""Tables for terminals and in Markdown."""

from cris_deploy.cli import tables

COLUMNS = ("name", "ms", "why")
ROWS = (("a", "1.50", "x | y"), ("日本語", "10", ""))


def test_text_is_aligned_by_the_cells_of_a_terminal() -> None:
    assert tables.to_text(COLUMNS, ROWS, words={"why"}).splitlines() == [
        "name      ms  why",
        "a       1.50  x | y",
        "日本語    10",
    ]


def test_markdown() -> None:
    lines = tables.to_markdown(COLUMNS, ROWS, words={"why"}).splitlines()
    assert lines[1].replace("-", "") == "|:|:|:|"
    assert [cell.strip() for cell in lines[2].split(" | ")][1] == "1.50"
    assert "x \\| y" in lines[2]
