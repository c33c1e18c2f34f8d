"""tokenizer.json: anything, or CLIP's format with a few values changed; then a word is encoded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cris_deploy.words.cleaning import END, START
from cris_deploy.words.tokenizer import Tokenizer
from tests.hard.fuzz.draw import Draw, damaged, edited, json_text

READER: Final = ("cris_deploy.words.tokenizer",)
OTHERS: Final = {
    "cris_deploy.words.tokenizer:Tokenizer.from_vocabulary": "training's own",
    "cris_deploy.words.tokenizer:byte_pair_model": "training's own",
    "cris_deploy.words.tokenizer:_byte_alphabet": "it reads nothing",
}
MODELS: Final[tuple[dict[str, Any], ...]] = (
    *({"type": "WordLevel"}, {"type": "WordPiece", "max_input_chars_per_word": 9}),
    *({"dropout": 0.5}, {"unk_token": None}, {"unk_token": "none"}, {"byte_fallback": True}),
)
LETTERS: Final = "abcdeght"
WORDS: Final[tuple[Any, ...]] = ([], ["!" * 99], [" "], [3], "the cat", [START + END])


def make(folder: Path) -> Callable[[bytes], None]:
    tokens = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "th", "the</w>", START, END]
    document: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": tokens.index(token),
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in (START, END)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": END,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": "</w>",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": ["t h", "th e</w>"],
        },
    }
    text = json.dumps(document).encode()
    path = folder / "tokenizer.json"

    def case(data: bytes) -> None:
        draw = Draw(data)
        kind = draw.whole(0, 7)
        word_len = draw.choose((7, 3, 77, 2, 78, 0, -1))
        if kind == 0:
            path.write_bytes(draw.rest())
        elif kind == 1:
            path.write_bytes(damaged(text, draw))
        elif kind == 2:  # another model than CLIP's, or one that is not sure of itself
            model = {**document["model"], **draw.choose(MODELS)}
            path.write_bytes(json_text({**document, "model": model}))
        else:
            path.write_bytes(json_text(edited(document, draw)))
        said = draw.choose((["the cat", draw.text() + "a"],) * 6 + WORDS)
        found = Tokenizer.from_file(path, word_len).encode(said)
        assert found.tokens.shape == (len(said), word_len)

    return case
