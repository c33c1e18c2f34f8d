"""Words that say nothing of the picture, put among those that do.

Who asks uses words that no training set has. Without having met any, a small model takes an unknown
word for what it is nearest to by chance; with some of them in its lessons it reads past them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
from open_clip.tokenizer import SimpleTokenizer

IN_TWO = 0.3
"""Share of the words that are of two tokens."""


def with_strange_word(
    tokens: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """`tokens` (L,) of an expression with a word of one or two random tokens before, between or
    after its words; as they are where there is no room for it."""
    ending, leading, ends = _vocabulary()
    strange = [rng.choice(ending)]
    if rng.random() < IN_TWO:
        strange.insert(0, rng.choice(leading))
    end = int(tokens.argmax())  # the end token has the largest number
    if end + len(strange) >= len(tokens):
        return tokens
    starts = np.flatnonzero(ends[tokens[1:end]]) + 2  # behind each word
    at = int(rng.choice([1, *starts]))
    return np.concatenate([tokens[:at], strange, tokens[at : len(tokens) - len(strange)]])


@cache
def _vocabulary() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """CLIP's tokens of two letters and more that end a word, and those that another one follows;
    and (V,) of all tokens whether they end one."""
    texts = SimpleTokenizer().decoder
    ends = np.array([texts[number].endswith("</w>") for number in range(len(texts))])
    letters = {number: text.removesuffix("</w>") for number, text in texts.items()}
    usable = np.array([n for n, text in letters.items() if text.isalpha() and len(text) > 1])
    return usable[ends[usable]], usable[~ends[usable]], ends
