"""Expressions become tokens by CLIP's byte-pair encoding, with a report of what was cut.

The result equals CLIP's own tokenizer on every string, its oddities included: the markers
`<start_of_text>` and `<end_of_text>` written out in an expression become their tokens, and a "!"
that byte-pair encoding leaves inside a word is token 0, which the model takes for padding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import regex
import tokenizers
from numpy.typing import NDArray

from cris_deploy.errors import BundleError, ExpressionError, InputError
from cris_deploy.words.cleaning import END, PATTERN, START, clean

WORD_END: Final = "</w>"
CONTEXT_LENGTH: Final = 77
"""Positions for which a CLIP text transformer has learnt embeddings."""

_CACHED_WORDS = 16384


class TruncationWarning(UserWarning):
    """An expression is longer than the model reads; the result says so, too."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Tokens (n, word_len) int64, padded with 0, and per expression whether it was cut."""

    tokens: NDArray[np.int64]
    truncated: tuple[bool, ...]


class Tokenizer:
    """Cleans, splits and encodes expressions for a model that reads `word_len` tokens.

    `word_len` (2 < word_len <= 77) counts the start and the end token. May be used from many
    threads.
    """

    def __init__(self, model: tokenizers.models.BPE, start: int, end: int, word_len: int) -> None:
        if not 2 < word_len <= CONTEXT_LENGTH:
            raise InputError(
                f"word_len is {word_len}: it must be from 3 to {CONTEXT_LENGTH} (the published "
                "models have 17 for RefCOCO and RefCOCO+, 22 for G-Ref)"
            )
        self.word_len: Final = word_len
        self._start, self._end = start, end
        self._model = model
        # Words are split here and not by `tokenizers`, whose engine follows another version of
        # Unicode: on letters of recent scripts the two disagree.
        self._words = regex.compile(PATTERN, regex.IGNORECASE)
        self._bytes = _byte_alphabet()
        self._encode_word = lru_cache(_CACHED_WORDS)(self._encode_new_word)

    @classmethod
    def from_file(cls, path: str | Path, word_len: int) -> "Tokenizer":
        """Read a tokenizer.json in the Hugging Face format; BundleError if it is not CLIP's."""
        try:
            document = tokenizers.Tokenizer.from_file(str(path))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a bare Exception, or a panic of Rust, which is not one
            raise BundleError(
                f"tokenizer {path} cannot be read ({error}): export the bundle again"
            ) from None
        start, end = document.token_to_id(START), document.token_to_id(END)
        model = document.model
        if not _is_clips(model) or start is None or end is None:
            raise BundleError(
                f"tokenizer {path} is not CLIP's byte-pair encoding with {START} and {END}: "
                "export the bundle again"
            )
        return cls(model, start, end, word_len)

    @classmethod
    def from_vocabulary(
        cls, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], word_len: int
    ) -> "Tokenizer":
        """Build from token ids and ranked merges, for training, where no file exists yet."""
        return cls(
            byte_pair_model(vocabulary, merges), vocabulary[START], vocabulary[END], word_len
        )

    def encode(self, expressions: Sequence[str]) -> TokenBatch:
        """Encode n expressions; longer ones are cut and their last token is the end token.

        Raises ExpressionError for one that is not a string or has nothing left after cleaning.
        """
        if isinstance(expressions, str):
            raise ExpressionError("expressions is a str: give a list of them")
        tokens = np.zeros((len(expressions), self.word_len), np.int64)
        truncated = []
        for row, expression in zip(tokens, expressions, strict=True):
            ids = self._encode_one(expression)
            truncated.append(len(ids) > self.word_len)
            row[: len(ids)] = ids[: self.word_len]
            if truncated[-1]:
                row[-1] = self._end
        return TokenBatch(tokens, tuple(truncated))

    def _encode_one(self, expression: str) -> list[int]:
        """Start token, words, end token; stops early when it is longer than word_len anyway."""
        if not isinstance(expression, str):
            raise ExpressionError(
                f"expression is a {type(expression).__name__}: give a string such as "
                "'the man in red'"
            )
        ids = [self._start]
        for match in self._words.finditer(clean(expression)):
            ids += self._encode_word(match.group())
            if len(ids) >= self.word_len:
                break
        if len(ids) == 1:
            raise ExpressionError(
                f"expression {expression[:40]!r} has no words: say what to find, such as "
                "'the man in red'"
            )
        return [*ids, self._end]

    def _encode_new_word(self, word: str) -> tuple[int, ...]:
        if word == START:
            return (self._start,)
        if word == END:
            return (self._end,)
        return tuple(
            token.id
            for token in self._model.tokenize(
                word.encode("utf-8").decode("latin-1").translate(self._bytes)
            )
        )


def byte_pair_model(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> tokenizers.models.BPE:
    """CLIP's byte-pair encoding of one word that is written in the byte alphabet."""
    return tokenizers.models.BPE(
        vocab=dict(vocabulary), merges=list(merges), end_of_word_suffix=WORD_END, unk_token=END
    )


def _is_clips(model: tokenizers.models.Model) -> bool:
    """Whether it gives every word the same tokens each time: no chance, and one for the unknown."""
    if not isinstance(model, tokenizers.models.BPE) or model.dropout is not None:
        return False
    unknown = model.unk_token
    return unknown is not None and model.token_to_id(unknown) is not None


def _byte_alphabet() -> dict[int, int]:
    """Code points in which byte-pair vocabularies write the 256 bytes: the printable ones as
    they are, the others from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: 256 + index for index, byte in enumerate(others)}
