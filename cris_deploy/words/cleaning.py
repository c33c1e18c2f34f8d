"""CLIP's text cleaning, and what it then takes for a word."""

import html
from typing import Final

import ftfy

START: Final = "<start_of_text>"
END: Final = "<end_of_text>"
PATTERN: Final = rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
"""CLIP's words: contractions, runs of letters, single digits, runs of anything else but space."""


def clean(expression: str) -> str:
    """Clean an expression as CLIP does before it looks for words.

    Mends mis-encoded text (ftfy), resolves HTML entities twice, folds white space, lower case.
    """
    text = expression
    # In printable ASCII without an entity there is nothing to mend, and to look takes 0.1 ms.
    if not (text.isascii() and text.isprintable()) or "&" in text:
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    # str.split, not a regular expression's \s: only the former takes \x1c..\x1f for white space.
    return " ".join(text.split()).lower()
