"""Random words among an expression's own: where they stand, and what stays."""

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from cris_train.data.dataset import ReferData
from cris_train.data.refer import read_split
from cris_train.data.strange import with_strange_word
from cris_train.model import CrisConfig
from cris_train.synthetic.refer_files import write_scenes

CONFIG = CrisConfig.tiny()
TOKENIZER = SimpleTokenizer()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReferData:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, {"train": 4}, seed=2)
    return ReferData(read_split(folder, "train"), CONFIG, strange_words=0.5)


def words(tokens: np.ndarray) -> list[str]:
    end = int(tokens.argmax())
    assert tokens[0] == TOKENIZER.sot_token_id
    assert not tokens[end + 1 :].any()
    return TOKENIZER.decode(tokens[1:end].tolist()).split()


def test_one_word_more_and_the_others_in_their_order(data: ReferData) -> None:
    text = "the thingamajig left of the xylophone"  # words of several tokens stay whole
    tokens, rng = data.tokens(text), np.random.default_rng(0)
    places, lengths = set(), set()
    for _ in range(300):
        changed = with_strange_word(tokens, rng)
        assert changed.shape == tokens.shape
        assert changed.dtype == tokens.dtype
        said = words(changed)
        (at,) = {
            k for k in range(len(said)) if said[:k] + said[k + 1 :] == text.split()
        } or pytest.fail(f"{said}")
        places.add(at)
        lengths.add(int(changed.argmax() - tokens.argmax()))
    assert places == set(range(len(text.split()) + 1))
    assert lengths == {1, 2}


def test_a_full_expression_stays(data: ReferData) -> None:
    full = data.tokens("red " * 40)
    assert with_strange_word(full, np.random.default_rng(0)) is full


def test_its_share_while_training_and_never_without_a_generator(data: ReferData) -> None:
    said = [(0, 0)] * 8
    plain = data.sample(0, said)
    assert all(np.array_equal(row, plain.tokens[0]) for row in plain.tokens)
    changed = sum(
        not np.array_equal(row, plain.tokens[0])
        for seed in range(100)
        for row in data.sample(0, said, np.random.default_rng(seed)).tokens
    )
    assert 340 < changed < 460  # half of 800, four standard deviations about it
    again = [data.sample(0, said, np.random.default_rng(7)).tokens for _ in range(2)]
    assert np.array_equal(*again)
