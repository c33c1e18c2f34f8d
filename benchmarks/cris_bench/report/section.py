"""Sections of a report: a table with the words around it, as Markdown and as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cris_deploy.cli import tables


@dataclass(frozen=True)
class Section:
    """A table with a title and words around it; without columns only the words.

    Attributes:
        title: Heading.
        intro: Sentences above the table.
        columns: Headings, the first column's on the left; the others are numbers, if not `words`.
        rows: Cells, as many as columns; "" for nothing.
        words: Columns other than the first that hold words.
        notes: Sentences below the table.
    """

    title: str
    intro: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    words: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def to_markdown(sections: Sequence[Section], *, level: int = 2) -> str:
    """Sections one below the other, each under a heading of that level."""
    parts: list[str] = []
    for section in sections:
        parts += [f"{'#' * level} {section.title}"] if section.title else []
        parts += section.intro
        if section.columns:
            parts.append(tables.to_markdown(section.columns, section.rows, words=section.words))
        parts += section.notes
    return "\n\n".join(parts) + "\n"


def to_text(sections: Sequence[Section]) -> str:
    """Sections one below the other, columns aligned for a terminal."""
    return "\n\n".join("\n".join(_text_lines(section)) for section in sections)


def _text_lines(section: Section) -> list[str]:
    lines = [section.title.upper()] if section.title else []
    lines += section.intro
    if section.columns:
        lines.append(tables.to_text(section.columns, section.rows, words=section.words))
    return [*lines, *section.notes]


def aligned(values: Sequence[float]) -> list[str]:
    """A column of numbers with as many decimals as the smallest one wants."""
    smallest = min((abs(value) for value in values if value), default=1.0)
    decimals = 1 if smallest >= 10 else 2 if smallest >= 1 else 3
    return [f"{value:.{decimals}f}" for value in values]


def points(share: float | None) -> str:
    """A share in points of 100; "" for none."""
    return "" if share is None else f"{100 * share:.2f}"
