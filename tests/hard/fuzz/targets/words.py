"""Expressions of any Unicode: the tokens are those of open_clip, whatever is said."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

from cris_deploy.words.tokenizer import Tokenizer
from tests.hard.fuzz.draw import Draw

READER: Final = ("cris_deploy.words.cleaning", "cris_deploy.words.tokenizer")
OTHERS: Final = {
    "cris_deploy.words.tokenizer:Tokenizer.from_file": "the target vocabularies reads those",
    "cris_deploy.words.tokenizer:Tokenizer.from_vocabulary": "training's own",
    "cris_deploy.words.tokenizer:Tokenizer.__init__": "its argument is checked where it is given",
    "cris_deploy.words.tokenizer:_is_clips": "a part of from_file",
}
LONGEST: Final = 512
PIECES: Final = (
    *("&amp;", "&#x27;", "&#xD800;", "&lt", "'s", "'ſ", "’ll", "<start_of_text>", "<end_of_text>"),
    *("<ſtart_of_text>", "\ud800", "\udc00", "\x1c", "\x85", "\u2028", "\u200d", "\u180e", "İ"),
    *("ß", "ς", "ﬁ", "½", "٣", "Ⅷ", "x²", "Ã©", "â€™", "e\u0301", "👩\u200d🚀", "1\ufe0f\u20e3"),
    *("the", " ", "left", "左边", "한국어", "हिन्दी", "ไทย", "\0", "</w>", "Ġ", "!@", "a" * 60),
)
WORD_LEN: Final = 17


def make(folder: Path) -> Callable[[bytes], None]:
    clip = SimpleTokenizer()
    clip.encode = lru_cache(1)(clip.encode)  # it is asked twice
    ranked = sorted(clip.bpe_ranks, key=clip.bpe_ranks.__getitem__)
    ours = Tokenizer.from_vocabulary(clip.encoder, ranked, WORD_LEN)
    others = (None, 3, b"bytes", ["list"], "")

    def case(data: bytes) -> None:
        draw = Draw(data)
        kind = draw.whole(0, 15)
        if kind == 0:
            ours.encode([draw.choose(others)])
            return
        if kind == 1:
            ours.encode(draw.choose(("text", [], ["", "a"])))
            return
        text = _text(draw, kind)
        found = ours.encode([text])
        expected = clip([text], context_length=WORD_LEN).numpy()
        np.testing.assert_array_equal(found.tokens, expected, err_msg=repr(text))
        assert found.truncated == (len(clip.encode(text)) + 2 > WORD_LEN,)

    return case


def _text(draw: Draw, kind: int) -> str:
    if kind < 6:
        return draw.rest().decode("utf-8", "replace")
    parts: list[str] = []
    while draw.left() and len(parts) < 40:
        which = draw.whole(0, 3)
        if which == 0:
            parts.append(draw.choose(PIECES))
        elif which == 1:
            parts.append(chr(draw.whole(0, 0x10FFFF)))
        elif which == 2:
            start = draw.whole(0, 0x1FFFF)
            parts.append("".join(chr(start + draw.whole(0, 63)) for _ in range(draw.whole(1, 6))))
        else:
            parts.append(draw.take(draw.whole(1, 8)).decode("latin-1"))
    return "".join(parts)
