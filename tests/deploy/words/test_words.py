"""The tokenizer equals CLIP's own (open_clip) on strings of every script, and reports cuts."""

import json
import random
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from cris_deploy.errors import BundleError, ExpressionError, InputError
from cris_deploy.words.cleaning import clean
from cris_deploy.words.tokenizer import CONTEXT_LENGTH, Tokenizer

open_clip_tokenizer = pytest.importorskip("open_clip.tokenizer")

TRAPS = (
    *("&amp;", "&amp;lt;", "&lt;b&gt;", "&#x27;s", "&nbsp;", "&#28;", "&#xD800;", "&quot"),
    *("&amp;amp;", "&amp;nbsp;", "\t", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f"),
    *("\x85", "\xa0", "\u2028", "\u2029", "\u200b", "\u200d", "\ufeff", "\u3000", "\u1680"),
    *("\u180e", "\x00", "\x1b[31m", "\x7f", "’s", "‘", "“red”", "'ſ", "'S", "'RE", "'lL", "'d"),
    *("\u212a", "\u212b", "ﬁ", "İ", "ı", "ß", "ẞ", "ς", "Σ", "<start_of_text>", "<end_of_text>"),
    *("<|endoftext|>", "<START_OF_TEXT>", "<ſtart_of_text>", "<end_of_text", "!", "!!", "!@", "@!"),
    *("</w>", "Ġ", "\ud800", "\udc00", "\ufffd", "\uffff", "👩\u200d🚀", "🏳\ufe0f\u200d🌈", "🇩🇪"),
    *("👨\u200d👩\u200d👧", "1\ufe0f\u20e3", "e\u0301\u0323", "الأيسر", "\u202eabc\u202c", "שמאל"),
    *(
        "左边的人",
        "ｗｉｄｅ",
        "한국어",
        "हिन्दी",
        "ไทย",
        "½",
        "٣",
        "Ⅷ",
        "x²",
        "–",
        "—",
        "…",
        "Ã©",
        "â€™",
    ),
)


def random_strings(count: int, seed: int) -> list[str]:
    """Strings that mix words, every assigned and unassigned block of Unicode, and traps."""
    rng = random.Random(seed)
    words = ("the", "left", "man's", "umbrella", "don't", "2nd", "GIRL", "in-between", "(front)")

    def block() -> str:
        start = rng.choice((rng.randrange(0x3000), rng.randrange(0x20000), rng.randrange(0x110000)))
        return "".join(
            chr(min(start + rng.randrange(64), sys.maxunicode)) for _ in range(rng.randrange(1, 9))
        )

    pieces = (lambda: rng.choice(words), block, lambda: rng.choice(TRAPS))
    return [
        rng.choice(("", " ")).join(rng.choice(pieces)() for _ in range(rng.randrange(1, 10)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def reference():
    return open_clip_tokenizer.SimpleTokenizer()


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory) -> Path:
    from cris_export.graph.tokenizer import write_tokenizer

    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(path)
    return path


def has_words(reference, text: str) -> bool:
    return bool(reference.encode(text))


@pytest.mark.parametrize(("word_len", "seed"), [(17, 1), (CONTEXT_LENGTH, 2)])
def test_equals_open_clip_on_every_script(tokenizer_file, reference, word_len, seed):
    texts = [t for t in random_strings(7000, seed) if has_words(reference, t)]
    assert len(texts) > 6500  # nearly all have something left after cleaning
    scripts = {unicodedata.name(c, "?").split()[0] for t in texts for c in t}
    assert len(scripts) > 200
    ours = Tokenizer.from_file(tokenizer_file, word_len).encode(texts)
    theirs = reference(texts, word_len).numpy()
    different = [t for t, a, b in zip(texts, ours.tokens, theirs, strict=True) if (a != b).any()]
    assert not different
    cut = tuple(len(reference.encode(t)) + 2 > word_len for t in texts)
    assert ours.truncated == cut


def test_each_trap_alone_and_inside(tokenizer_file, reference):
    texts = [f for t in TRAPS for f in (t, f"a{t}b", f"a {t} b", t * 3, t.upper())]
    texts = [t for t in texts if has_words(reference, t)]
    ours = Tokenizer.from_file(tokenizer_file, CONTEXT_LENGTH).encode(texts).tokens
    np.testing.assert_array_equal(ours, reference(texts, CONTEXT_LENGTH).numpy())


def test_cleaning_equals_open_clip(reference):
    for text in (*TRAPS, *random_strings(2000, 3)):
        assert clean(text) == reference.clean_fn(text)


def test_every_code_point_is_the_same_kind_of_word(tokenizer_file, reference):
    # In blocks of 64 with a letter and a digit between, so that the class of each one matters.
    texts = [
        "a1".join(chr(c) for c in range(start, start + 16))
        for start in range(0x20, 0x32000, 16)
        if not 0xD800 <= start < 0xE000
    ]
    texts = [t for t in texts if has_words(reference, t)]
    ours = Tokenizer.from_file(tokenizer_file, CONTEXT_LENGTH).encode(texts).tokens
    np.testing.assert_array_equal(ours, reference(texts, CONTEXT_LENGTH).numpy())


def test_from_vocabulary_equals_from_file(tokenizer_file, reference):
    ranked = sorted(reference.bpe_ranks, key=reference.bpe_ranks.get)
    built = Tokenizer.from_vocabulary(reference.encoder, ranked, 22)
    texts = [t for t in random_strings(300, 4) if has_words(reference, t)]
    read = Tokenizer.from_file(tokenizer_file, 22)
    np.testing.assert_array_equal(built.encode(texts).tokens, read.encode(texts).tokens)


def test_the_file_alone_is_a_working_tokenizer(tokenizer_file, reference):
    import tokenizers

    document = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    for text in ("The man's hat  in RED", "two 42-inch screens, left", "naïve café"):
        expected = [reference.sot_token_id, *reference.encode(text), reference.eot_token_id]
        assert document.encode(text).ids == expected


def test_cut_keeps_the_end_token(tokenizer_file):
    tokenizer = Tokenizer.from_file(tokenizer_file, 5)
    batch = tokenizer.encode(["a b c", "a b c d", "a"])
    assert batch.truncated == (False, True, False)
    assert batch.tokens.dtype == np.int64
    assert batch.tokens.shape == (3, 5)
    assert batch.tokens[0, -1] == batch.tokens[1, -1] == 49407
    np.testing.assert_array_equal(batch.tokens[0], batch.tokens[1])
    np.testing.assert_array_equal(batch.tokens[2, 3:], 0)


def test_very_long_strings(tokenizer_file, reference):
    tokenizer = Tokenizer.from_file(tokenizer_file, 17)
    for text in ("red " * 50_000, "ab" * 2_000, "!" * 3_000, "字" * 3_000):
        batch = tokenizer.encode([text])
        assert batch.truncated == (True,)
        np.testing.assert_array_equal(batch.tokens, reference([text], 17).numpy())


def test_no_expressions_is_an_empty_batch(tokenizer_file):
    assert Tokenizer.from_file(tokenizer_file, 17).encode([]).tokens.shape == (0, 17)


@pytest.mark.parametrize(
    "empty", ["", "  \t\n", "\xa0\u3000", "&nbsp;&amp;nbsp;", "\x00\x1b", "\x1c"]
)
def test_empty_after_cleaning(tokenizer_file, empty):
    with pytest.raises(ExpressionError, match="no words"):
        Tokenizer.from_file(tokenizer_file, 17).encode(["fine", empty])


@pytest.mark.parametrize("wrong", [None, 3, b"the man", ["the man"]])
def test_not_a_string(tokenizer_file, wrong):
    with pytest.raises(ExpressionError, match=type(wrong).__name__):
        Tokenizer.from_file(tokenizer_file, 17).encode([wrong])


def test_one_string_instead_of_a_list(tokenizer_file):
    with pytest.raises(ExpressionError, match="list"):
        Tokenizer.from_file(tokenizer_file, 17).encode("the man")


@pytest.mark.parametrize("word_len", [0, 2, 78])
def test_word_length_out_of_range(tokenizer_file, word_len):
    with pytest.raises(InputError, match="word_len"):
        Tokenizer.from_file(tokenizer_file, word_len)


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"version": "1.0", "model": {"type": "BPE"}}']
)
def test_not_a_tokenizer_file(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BundleError, match="tokenizer"):
        Tokenizer.from_file(path, 17)


def test_missing_tokenizer_file(tmp_path):
    with pytest.raises(BundleError, match="tokenizer"):
        Tokenizer.from_file(tmp_path / "none.json", 17)


def test_another_tokenizer(tmp_path):
    import tokenizers

    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[])).save(str(path))
    with pytest.raises(BundleError, match="CLIP"):
        Tokenizer.from_file(path, 17)


@pytest.mark.parametrize("changes", [{"unk_token": "nowhere"}, {"unk_token": None}, {"dropout": 1}])
def test_a_tokenizer_that_fails_or_guesses(tokenizer_file, tmp_path, changes):
    """A word that has no token is met while expressions are read; chance gives other masks."""
    document = json.loads(tokenizer_file.read_text())
    document["model"] |= changes
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="CLIP"):
        Tokenizer.from_file(path, 17)


def test_a_tokenizer_whose_reader_panics(tokenizer_file, tmp_path):
    """A panic of Rust is no Exception: it would pass through whoever catches those."""
    document = json.loads(tokenizer_file.read_text())
    document["model"] |= {"continuing_subword_prefix": "x" * 3000}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="cannot be read"):
        Tokenizer.from_file(path, 17)
