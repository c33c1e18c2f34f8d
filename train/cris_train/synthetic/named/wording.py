"""How meanings become sentences: synonyms, word order, casual speech, slips of the finger."""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from cris_train.synthetic.named.meaning import (
    BIG_LEAD,
    Expression,
    Kind,
    Noun,
    Place,
    Rank,
    Relation,
    Side,
)
from cris_train.synthetic.named.scenes import pick

_THINGS: Final = ("thing", "object", "one", "item")
_ORDINALS: Final = (("first", "1st"), ("second", "2nd"), ("third", "3rd"), ("fourth", "4th"))
_NUMBERS: Final = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}
_IRREGULAR: Final = {
    **{"mouse": "mice", "goose": "geese", "wolf": "wolves", "deer": "deer", "sheep": "sheep"},
    **{"fish": "fish", "die": "dice", "knife": "knives", "tooth": "teeth", "leaf": "leaves"},
    **{"moose": "moose", "bison": "bison", "squid": "squid", "shrimp": "shrimp", "ox": "oxen"},
    **{"box": "boxes", "fruit": "fruits"},
}
_UNCOUNTED: Final = (
    *("food", "clothing", "milk", "popcorn", "bread", "bacon", "sushi", "spaghetti"),
    *("pasta", "cheese", "butter", "broccoli", "garlic", "corn", "maize", "ginger"),
    *("champagne", "wine", "honey", "soap", "salt", "meat", "luggage", "yarn"),
    *("thread", "wood", "earth", "fire", "wheat", "bamboo", "tea", "coffee"),
    *("beer", "soda", "whisky", "mate", "lettuce", "salad", "ramen", "chocolate"),
)
_PLACES: Final = {
    (-1, None): ("on the left", "on the left side", "at the left", "on the left hand side"),
    (1, None): ("on the right", "on the right side", "at the right", "on the right hand side"),
    (None, -1): ("at the top", "on top", "in the upper part", "up top"),
    (None, 1): ("at the bottom", "in the lower part", "down low"),
    (0, 0): ("in the middle", "in the centre", "in the center", "at the center"),
    (-1, -1): ("at the top left", "in the top left corner", "in the upper left"),
    (1, -1): ("at the top right", "in the top right corner", "in the upper right"),
    (-1, 1): ("at the bottom left", "in the bottom left corner", "in the lower left"),
    (1, 1): ("at the bottom right", "in the bottom right corner", "in the lower right"),
}
_BEFORE_NOUN: Final = {
    (-1, None): "left",
    (1, None): "right",
    (None, -1): "top",
    (None, 1): "bottom",
    (0, 0): "middle",
    (-1, -1): "top left",
    (1, -1): "top right",
    (-1, 1): "bottom left",
    (1, 1): "bottom right",
}
_EXTREMES: Final = {  # before the noun, and after it
    ("x", 0): (("leftmost", "far left"), ("furthest left", "farthest to the left")),
    ("x", -1): (("rightmost", "far right"), ("furthest right", "farthest to the right")),
    ("y", 0): (("topmost", "highest", "uppermost"), ("nearest the top",)),
    ("y", -1): (("bottommost", "lowest"), ("nearest the bottom",)),
    ("size", 0): (("smallest", "tiniest"), ("that is the smallest",)),
    ("size", -1): (("largest", "biggest"), ("that is the biggest", "that is the largest")),
}
_SIDES: Final = {
    Side.LEFT: ("left of", "to the left of", "on the left of", "that is left of"),
    Side.RIGHT: ("right of", "to the right of", "on the right of", "that is right of"),
    Side.ABOVE: ("above", "over", "higher than", "that is above"),
    Side.BELOW: ("below", "under", "beneath", "lower than"),
    Side.BESIDE: ("next to", "beside", "right next to", "close to"),
    Side.BEFORE: ("in front of", "covering", "partly hiding"),
    Side.BEHIND: ("behind", "partly hidden by", "that is behind"),
}
_OPENINGS: Final = (
    "find the",
    "show me the",
    "select the",
    "where is the",
    "mark the",
    "i mean the",
)


def say(expression: Expression, rng: np.random.Generator) -> str:
    """Put a meaning into words, drawing among the ways to say it; no slips yet."""
    qualifier = expression.qualifier
    if isinstance(qualifier, Place):
        words = _placed(expression.noun, qualifier, rng)
    elif isinstance(qualifier, Rank):
        words = _ranked(expression, qualifier, rng)
    elif isinstance(qualifier, Relation):
        anchor = _noun(qualifier.anchor, rng, short=True)
        side = pick(rng, _SIDES[qualifier.side])
        words = f"{_noun(expression.noun, rng, short=True)} {side} the {anchor}"
    else:
        words = _noun(expression.noun, rng)
    if words.startswith(("on ", "in ", "at ", "of the ", "number ")):
        return words
    draw = rng.random()
    if draw < 0.62:
        return f"the {words}"
    return words if draw < 0.93 else f"{pick(rng, _OPENINGS)} {words}"


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
    word = noun.word if noun.word is not None else pick(rng, _THINGS)
    if noun.colour is not None:
        draw = 0.0 if short else rng.random()
        if draw < 0.75:
            return f"{noun.colour} {word}"
        return f"{word} {pick(rng, ('that is', 'which is', 'in'))} {noun.colour}"
    if noun.not_colour is not None:
        way = pick(rng, ("that is not", "that isn't", "which is not"))
        return f"{word} {way} {noun.not_colour}"
    if noun.not_word is not None:
        way = pick(rng, ("that is not", "that isn't", "other than"))
        article = "the" if way == "other than" else _a(noun.not_word)
        return f"{word} {way} {article} {noun.not_word}"
    return word


def _a(word: str) -> str:
    return "an" if word[0] in "aeio" else "a"


def _placed(noun: Noun, place: Place, rng: np.random.Generator) -> str:
    key = (place.across, place.down)
    words, draw = _noun(noun, rng, short=True), rng.random()
    if draw < 0.22:
        return f"{_BEFORE_NOUN[key]} {words}"
    where = pick(rng, _PLACES[key])
    if draw < 0.30 and where.startswith(("on ", "in ", "at ")):
        return f"{where} the {words}"
    return f"{words} {where}"


def _ranked(expression: Expression, rank: Rank, rng: np.random.Generator) -> str:
    words = _noun(expression.noun, rng, short=True)
    if rank.anchor is not None:
        ways = ("closest to", "nearest to") if rank.place == 0 else ("farthest from",)
        return f"{words} {pick(rng, ways)} the {_noun(rank.anchor, rng, short=True)}"
    if rank.lead == BIG_LEAD:
        sizes = ("small", "little", "smaller") if rank.place == 0 else ("big", "large", "bigger")
        return f"{pick(rng, sizes)} {words}"
    if rank.total is not None:
        return _counted(expression.noun, rank, rank.total, rng)
    if expression.kind is Kind.ORDINAL:
        return _numbered(words, rank, rng)
    before, after = _EXTREMES[rank.axis, rank.place]
    if rng.random() < 0.75:
        return f"{pick(rng, before)} {words}"
    return f"{words} {pick(rng, after)}"


def _numbered(words: str, rank: Rank, rng: np.random.Generator) -> str:
    """ "second mug from the left", "second largest mug"."""
    back = rank.place < 0
    number = -rank.place - 1 if back else rank.place
    ordinal = pick(rng, _ORDINALS[number])
    if rank.axis == "size":
        extreme = pick(rng, ("largest", "biggest")) if back else "smallest"
        return f"{ordinal} {extreme} {words}"
    start = {"x": ("left", "right"), "y": ("top", "bottom")}[rank.axis][back]
    draw = rng.random()
    if draw < 0.15:
        return f"{words} number {_counts(number + 1)} from the {start}"
    if draw < 0.3:
        return f"{ordinal} from the {start} {words}"
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
        which = pick(rng, _EXTREMES[rank.axis, rank.place][0])
    number = _counts(total)
    if rng.random() < 0.25:
        return f"of the {number} {many} the {which} one"
    return f"{which} {pick(rng, ('one of', 'of'))} the {number} {many}"


def _counts(number: int) -> str:
    return _NUMBERS.get(number, "one")
