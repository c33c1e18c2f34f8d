"""Groups of expressions that are measured apart: by length, by how large what is meant is."""

from __future__ import annotations

from typing import Final

WORDS_GROUPS: Final = ("1 to 3 words", "4 to 6 words", "7 words or more")
AREA_GROUPS: Final = ("below 2% of the picture", "2% to 5%", "5% to 10%", "10% or more")


def words_group(expression: str) -> str:
    """One of WORDS_GROUPS."""
    words = len(expression.split())
    return WORDS_GROUPS[(words > 3) + (words > 6)]


def area_group(share: float) -> str:
    """One of AREA_GROUPS; `share` is the mask's part of the picture, 0 to 1."""
    return AREA_GROUPS[sum(share >= limit for limit in (0.02, 0.05, 0.10))]
