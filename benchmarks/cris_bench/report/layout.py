"""Tables of strings, as Markdown and as plain text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table with a title and words around it; without columns only the words.

    Attributes:
        title: Heading.
        intro: Sentences above it.
        columns: Headings, the first column's on the left; the others are numbers, if not `words`.
        rows: Cells, as many as columns; "" for nothing.
        words: Columns other than the first that hold words.
        notes: Sentences below it.
    """

    title: str
    intro: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    words: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def is_left(self, column: int) -> bool:
        """Whether a column's cells stand on the left."""
        return column == 0 or self.columns[column] in self.words


def to_markdown(tables: Sequence[Table], *, level: int = 2) -> str:
    """Tables one below the other, each under a heading of that level."""
    parts: list[str] = []
    for table in tables:
        if table.title:
            parts.append(f"{'#' * level} {table.title}")
        parts.extend(table.intro)
        if table.columns:
            rule = tuple(":--" if table.is_left(i) else "--:" for i in range(len(table.columns)))
            lines = (table.columns, rule, *table.rows)
            parts.append("\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines))
        parts.extend(table.notes)
    return "\n\n".join(parts) + "\n"


def to_text(tables: Sequence[Table]) -> str:
    """Tables one below the other, columns aligned for a terminal."""
    return "\n\n".join("\n".join(_text_lines(table)) for table in tables)


def _text_lines(table: Table) -> list[str]:
    lines = [table.title.upper()] if table.title else []
    lines.extend(table.intro)
    if table.columns:
        grid = (table.columns, *table.rows)
        widths = [max(map(_width, column)) for column in zip(*grid, strict=True)]
        for cells in grid:
            padded = (
                cell + gap if table.is_left(i) else gap + cell
                for i, cell in enumerate(cells)
                for gap in (" " * (widths[i] - _width(cell)),)
            )
            lines.append("  ".join(padded).rstrip())
    lines.extend(table.notes)
    return lines


def _width(text: str) -> int:
    """Cells of a terminal that a text takes."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
