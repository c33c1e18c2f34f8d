"""Tables, by tabulate: aligned for a terminal, or in Markdown."""

from collections.abc import Collection, Sequence


def to_text(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: Collection[str] = ()
) -> str:
    """Give a table for a terminal.

    Args:
        columns: Headings.
        rows: Cells, as many as columns; "" for nothing.
        words: Headings of the columns that hold words, on the left as the first column is; the
            others hold numbers, on the right.
    """
    return _table("plain", columns, rows, words)


def to_markdown(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, words: Collection[str] = ()
) -> str:
    """Give a table in Markdown; arguments as for `to_text`."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return _table("pipe", columns, rows, words)


def _table(
    form: str, columns: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[str]
) -> str:
    from tabulate import tabulate

    left = ["left" if not i or name in words else "right" for i, name in enumerate(columns)]
    return tabulate(
        rows, columns, tablefmt=form, colalign=left, disable_numparse=True, preserve_whitespace=True
    )
