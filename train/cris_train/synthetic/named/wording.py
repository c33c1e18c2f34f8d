"""How meanings become sentences: which words of `ways.py`, in what order; slips of the finger."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

import numpy as np

from cris_train.synthetic.named import ways
from cris_train.synthetic.named.meaning import (
    BIG_LEAD,
    Expression,
    Kind,
    Noun,
    Place,
    Rank,
    Relation,
)
from cris_train.synthetic.named.names import things
from cris_train.synthetic.named.scenes import pick

_IRREGULAR: Final = {
    **{"mouse": "mice", "goose": "geese", "wolf": "wolves", "deer": "deer", "sheep": "sheep"},
    **{"fish": "fish", "die": "dice", "knife": "knives", "tooth": "teeth", "leaf": "leaves"},
    **{"moose": "moose", "bison": "bison", "squid": "squid", "shrimp": "shrimp", "ox": "oxen"},
    **{"box": "boxes", "fruit": "fruits", "aircraft": "aircraft"},
}
_UNCOUNTED: Final = (
    *("food", "clothing", "milk", "popcorn", "bread", "bacon", "sushi", "spaghetti"),
    *("pasta", "cheese", "butter", "broccoli", "garlic", "corn", "maize", "ginger"),
    *("champagne", "wine", "honey", "soap", "salt", "meat", "luggage", "yarn"),
    *("thread", "wood", "earth", "fire", "wheat", "bamboo", "tea", "coffee"),
    *("footwear", "furniture", "mail", "wool", "ice", "paper"),
    *("beer", "soda", "whisky", "mate", "lettuce", "salad", "ramen", "chocolate"),
)


def say(expression: Expression, rng: np.random.Generator) -> str:
    """Put a meaning into words, drawing among the ways to say it; no slips yet."""
    words = _said(expression, rng)
    # "Top hat" for the hat at the top, "big cat" for a large cat.
    while words in _called() and words != expression.noun.word:
        words = _said(expression, rng)
    if rng.random() < 0.04:
        words = f"{words} {pick(rng, ways.ENDINGS)}"
    if words.startswith(ways.NO_ARTICLE):
        return words
    draw = rng.random()
    if draw < 0.56:
        return f"the {words}"
    return words if draw < 0.89 else f"{pick(rng, ways.OPENINGS)} {words}"


def _said(expression: Expression, rng: np.random.Generator) -> str:
    qualifier = expression.qualifier
    if isinstance(qualifier, Place):
        return _placed(expression.noun, qualifier, rng)
    if isinstance(qualifier, Rank):
        return _ranked(expression, qualifier, rng)
    if isinstance(qualifier, Relation):
        side = pick(rng, ways.SIDES[qualifier.side])
        if rng.random() < 0.15:
            side = f"{pick(rng, ways.WHICH_IS[:3])} {side}"
        return f"{_noun(expression.noun, rng, short=True)} {side} {_anchor(qualifier.anchor, rng)}"
    return _noun(expression.noun, rng)


@cache
def _called() -> frozenset[str]:
    return frozenset(word for thing in things() for word in thing.words)


def with_slip(text: str, rng: np.random.Generator) -> str:
    """`text` with one slip of the finger: in a word of five letters or more, two are exchanged,
    one is doubled, or one is left out; the first letter stays."""
    words = text.split()
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    at = pick(rng, long)
    word, k = words[at], int(rng.integers(1, len(words[at]) - 1))
    words[at] = pick(
        rng,
        (
            word[:k] + word[k + 1] + word[k] + word[k + 2 :],
            word[: k + 1] + word[k:],
            word[:k] + word[k + 1 :],
        ),
    )
    return " ".join(words)


def plural(word: str) -> str | None:
    """More than one of it; None for what is plural already, or has none."""
    first, _, last = word.rpartition(" ")
    if last in _UNCOUNTED:
        return None
    if re.search(r" (of|on|and|with) ", word) or re.search(r"\W", last):
        return None
    lead = f"{first} " if first else ""
    if last in _IRREGULAR:
        return lead + _IRREGULAR[last]
    if last.endswith(("ss", "sh", "ch", "x")):
        return f"{lead}{last}es"
    if last.endswith("s"):
        return None
    if re.search(r"[^aeiou]y$", last):
        return f"{lead}{last[:-1]}ies"
    return f"{lead}{last}s"


def _noun(noun: Noun, rng: np.random.Generator, *, short: bool = False) -> str:
    """Without article; `short` keeps everything before the noun, so that more may follow."""
    word = noun.word if noun.word is not None else pick(rng, ways.THINGS)
    if noun.colour is not None:
        colour = _colour(noun.colour, rng)
        draw = 0.0 if short else rng.random()
        if draw < 0.7:
            return f"{colour} {word}"
        if draw < 0.75:
            return f"{colour} {pick(rng, ('colored', 'coloured'))} {word}"
        return f"{word} {pick(rng, ways.OF_COLOUR)} {colour}"
    if noun.not_colour is not None:
        return f"{word} {pick(rng, ways.NOT)} {_colour(noun.not_colour, rng)}"
    if noun.not_word is not None:
        if rng.random() < 0.3:
            return f"{word} {pick(rng, ways.EXCEPT)} the {noun.not_word}"
        return f"{word} {pick(rng, ways.NOT)} {_a(noun.not_word)} {noun.not_word}"
    return word


def _anchor(noun: Noun, rng: np.random.Generator) -> str:
    words = _noun(noun, rng, short=True)
    return words if rng.random() < 0.1 else f"the {words}"


def _colour(colour: str, rng: np.random.Generator) -> str:
    return pick(rng, ways.COLOURS[colour]) if colour in ways.COLOURS else colour


def _a(word: str) -> str:
    return "an" if word[0] in "aeio" else "a"


def _placed(noun: Noun, place: Place, rng: np.random.Generator) -> str:
    key = (place.across, place.down)
    words, draw = _noun(noun, rng, short=True), rng.random()
    if draw < 0.22:
        return f"{pick(rng, ways.BEFORE_NOUN[key])} {words}"
    where = pick(rng, ways.PLACES[key])
    if where.startswith(ways.NO_ARTICLE):
        if draw < 0.30:
            return f"{where} the {words}"
        if draw < 0.42:
            return f"{words} {pick(rng, ways.WHICH_IS)} {where}"
    return f"{words} {where}"


def _ranked(expression: Expression, rank: Rank, rng: np.random.Generator) -> str:
    words = _noun(expression.noun, rng, short=True)
    if rank.anchor is not None:
        near = ways.NEAREST if rank.place == 0 else ways.FARTHEST
        return f"{words} {pick(rng, near)} {_anchor(rank.anchor, rng)}"
    if rank.lead == BIG_LEAD:
        return f"{pick(rng, ways.SMALL if rank.place == 0 else ways.BIG)} {words}"
    if rank.total is not None:
        return _counted(expression.noun, rank, rank.total, rng)
    if expression.kind is Kind.ORDINAL:
        return _numbered(words, rank, rng)
    before, after = ways.EXTREMES[rank.axis, rank.place]
    if rng.random() < 0.75:
        return f"{pick(rng, before)} {words}"
    return f"{words} {pick(rng, after)}"


def _numbered(words: str, rank: Rank, rng: np.random.Generator) -> str:
    """ "second mug from the left", "second largest mug"."""
    back = rank.place < 0
    number = -rank.place - 1 if back else rank.place
    ordinal = pick(rng, ways.ORDINALS[number])
    if rank.axis == "size":
        extreme = pick(rng, ("largest", "biggest")) if back else "smallest"
        return f"{ordinal} {extreme} {words}"
    start = {"x": ("left", "right"), "y": ("top", "bottom")}[rank.axis][back]
    draw = rng.random()
    if draw < 0.15:
        return f"{words} number {_counts(number + 1, rng)} from the {start}"
    if draw < 0.27:
        return f"{ordinal} from the {start} {words}"
    if draw < 0.35:
        return (
            f"{words} {pick(rng, ('that is', 'which is', 'that comes'))} {ordinal} from the {start}"
        )
    if draw < 0.42:
        return f"{ordinal} {words} {pick(rng, ('counting', 'starting'))} from the {start}"
    return f"{ordinal} {words} from {pick(rng, ('the ', 'the ', ''))}{start}"


def _counted(noun: Noun, rank: Rank, total: int, rng: np.random.Generator) -> str:
    """ "left one of the two mugs", "middle one of the three red mugs"."""
    assert noun.word is not None
    many = plural(noun.word)
    assert many is not None
    many = many if noun.colour is None else f"{noun.colour} {many}"
    ends = {"x": ("left", "right"), "y": ("top", "bottom"), "size": ("smaller", "bigger")}
    if rank.place not in (0, -1):
        which = "middle"
    elif total == 2:
        which = ends[rank.axis][rank.place]
    else:
        which = pick(rng, ways.EXTREMES[rank.axis, rank.place][0])
    number = _counts(total, rng)
    if rng.random() < 0.25:
        return f"{pick(rng, ('of', 'out of', 'among'))} the {number} {many} the {which} one"
    return f"{which} {pick(rng, ('one of', 'of', 'one out of'))} the {number} {many}"


def _counts(number: int, rng: np.random.Generator) -> str:
    return str(number) if rng.random() < 0.15 else ways.NUMBERS.get(number, "one")
