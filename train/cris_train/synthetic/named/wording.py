"""How meanings become sentences: synonyms, word order, casual speech, slips of the finger."""

from __future__ import annotations

import re
from functools import cache
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
from cris_train.synthetic.named.names import things
from cris_train.synthetic.named.scenes import pick

_NO_ARTICLE: Final = (
    *("on ", "in ", "at ", "of the ", "out of ", "among ", "over ", "to ", "towards ", "near "),
    *("right in ", "around ", "up ", "down "),
)
_THINGS: Final = ("thing", "object", "one", "item")
_ORDINALS: Final = (("first", "1st"), ("second", "2nd"), ("third", "3rd"), ("fourth", "4th"))
_NUMBERS: Final = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}
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
_PLACES: Final[dict[tuple[int | None, int | None], tuple[str, ...]]] = {
    (-1, None): (
        *("on the left", "on the left side", "at the left", "on the left hand side"),
        *("to the left", "over on the left", "towards the left", "in the left half"),
        *("on the left of the picture", "on the left side of the image", "left hand side"),
    ),
    (1, None): (
        *("on the right", "on the right side", "at the right", "on the right hand side"),
        *("to the right", "over on the right", "towards the right", "in the right half"),
        *("on the right of the picture", "on the right side of the image", "right hand side"),
    ),
    (None, -1): (
        *("at the top", "on top", "in the upper part", "up top", "near the top", "high up"),
        *("towards the top", "in the top half", "in the upper half", "at the top of the picture"),
        *("up there", "up high"),
    ),
    (None, 1): (
        *("at the bottom", "in the lower part", "down low", "near the bottom", "low down"),
        *("towards the bottom", "in the bottom half", "in the lower half", "down there"),
        *("at the bottom of the picture", "down below"),
    ),
    (0, 0): (
        *("in the middle", "in the centre", "in the center", "at the center", "near the middle"),
        *("right in the middle", "in the middle of the picture", "in the center of the image"),
        *("around the middle", "in the central part"),
    ),
    **{
        (across, down): (
            *(f"at the {ends[0]} {side}", f"in the {ends[0]} {side} corner", f"{ends[0]} {side}"),
            *(
                f"in the {ends[1]} {side}",
                f"in the {ends[1]} {side} corner",
                f"{way} on the {side}",
            ),
            *(f"{ends[1]} {side} corner", f"{ends[0]} {side} corner", f"in the {ends[0]} {side}"),
            *(f"{way} in the {side} corner", f"in the {side} {ends[1]} corner"),
            f"{way} to the {side}",
        )
        for across, side in ((-1, "left"), (1, "right"))
        for down, way, ends in ((-1, "up", ("top", "upper")), (1, "down", ("bottom", "lower")))
    },
}
_BEFORE_NOUN: Final = {
    (-1, None): ("left", "left", "left hand"),
    (1, None): ("right", "right", "right hand"),
    (None, -1): ("top", "top", "upper"),
    (None, 1): ("bottom", "bottom", "lower"),
    (0, 0): ("middle", "middle", "center", "central"),
    (-1, -1): ("top left", "upper left"),
    (1, -1): ("top right", "upper right"),
    (-1, 1): ("bottom left", "lower left"),
    (1, 1): ("bottom right", "lower right"),
}
_EXTREMES: Final = {  # before the noun, and after it
    ("x", 0): (
        ("leftmost", "far left", "left most", "most left"),
        ("furthest left", "farthest to the left", "at the far left", "closest to the left edge"),
    ),
    ("x", -1): (
        ("rightmost", "far right", "right most", "most right"),
        (
            "furthest right",
            "farthest to the right",
            "at the far right",
            "closest to the right edge",
        ),
    ),
    ("y", 0): (
        ("topmost", "highest", "uppermost", "top most"),
        ("nearest the top", "closest to the top", "highest up", "at the very top"),
    ),
    ("y", -1): (
        ("bottommost", "lowest", "bottom most", "lowermost"),
        ("nearest the bottom", "closest to the bottom", "lowest down", "at the very bottom"),
    ),
    ("size", 0): (
        ("smallest", "tiniest", "littlest"),
        ("that is the smallest", "that looks smallest", "with the smallest size"),
    ),
    ("size", -1): (
        ("largest", "biggest", "largest", "biggest", "hugest"),
        ("that is the biggest", "that is the largest", "that looks biggest"),
    ),
}
_SMALL: Final = ("small", "little", "smaller", "tiny", "mini", "littler", "small sized")
_BIG: Final = ("big", "large", "bigger", "larger", "huge", "giant", "great big", "enormous")
_SIDES: Final = {
    Side.LEFT: ("left of", "to the left of", "on the left of", "on the left side of", "left from"),
    Side.RIGHT: ("right of", "to the right of", "on the right of", "on the right side of",
                 "right from"),
    Side.ABOVE: ("above", "over", "higher than", "up above", "higher up than", "further up than"),
    Side.BELOW: ("below", "under", "beneath", "lower than", "underneath", "further down than"),
    Side.BESIDE: ("next to", "beside", "right next to", "close to", "near", "by", "adjacent to",
                  "alongside"),
    Side.BEFORE: ("in front of", "covering", "partly hiding", "blocking", "obscuring",
                  "partially covering"),
    Side.BEHIND: ("behind", "partly hidden by", "in back of", "partly covered by",
                  "partially hidden by", "half hidden by", "partially behind"),
}  # fmt: skip
_WHICH_IS: Final = ("that is", "that's", "which is", "located", "standing", "placed", "sitting")
_NEAREST: Final = ("closest to", "nearest to", "nearest")
_FARTHEST: Final = ("farthest from", "furthest from", "farthest away from", "most distant from")
_OF_COLOUR: Final = ("that is", "that's", "which is", "in", "that looks")
_NOT: Final = ("that is not", "that isn't", "which is not", "that's not", "which isn't")
_EXCEPT: Final = ("other than", "except", "except for", "but not", "apart from")
_COLOURS: Final = {"grey": ("grey", "gray"), "purple": ("purple", "purple", "violet")}
_OPENINGS: Final = (
    *("find the", "show me the", "select the", "where is the", "mark the", "i mean the"),
    *("please find the", "can you find the", "look for the", "pick the", "point to the"),
    *("highlight the", "give me the", "i want the", "click on the", "find me the", "spot the"),
    *("could you select the", "segment the", "choose the", "where's the", "look at the"),
    *("it is the", "it's the", "that would be the", "i am looking for the", "see the"),
)
_ENDINGS: Final = (
    *("please", "in the picture", "in this picture", "in the image", "in the photo", "here"),
    *("in this scene", "thanks"),
)


def say(expression: Expression, rng: np.random.Generator) -> str:
    """Put a meaning into words, drawing among the ways to say it; no slips yet."""
    words = _said(expression, rng)
    while words in _called() and words != expression.noun.word:
        words = _said(
            expression, rng
        )  # "top hat" for the hat at the top, "big cat" for a large cat
    if rng.random() < 0.04:
        words = f"{words} {pick(rng, _ENDINGS)}"
    if words.startswith(_NO_ARTICLE):
        return words
    draw = rng.random()
    if draw < 0.56:
        return f"the {words}"
    return words if draw < 0.89 else f"{pick(rng, _OPENINGS)} {words}"


def _said(expression: Expression, rng: np.random.Generator) -> str:
    qualifier = expression.qualifier
    if isinstance(qualifier, Place):
        return _placed(expression.noun, qualifier, rng)
    if isinstance(qualifier, Rank):
        return _ranked(expression, qualifier, rng)
    if isinstance(qualifier, Relation):
        side = pick(rng, _SIDES[qualifier.side])
        if rng.random() < 0.15:
            side = f"{pick(rng, _WHICH_IS[:3])} {side}"
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
    word = noun.word if noun.word is not None else pick(rng, _THINGS)
    if noun.colour is not None:
        colour = _colour(noun.colour, rng)
        draw = 0.0 if short else rng.random()
        if draw < 0.7:
            return f"{colour} {word}"
        if draw < 0.75:
            return f"{colour} {pick(rng, ('colored', 'coloured'))} {word}"
        return f"{word} {pick(rng, _OF_COLOUR)} {colour}"
    if noun.not_colour is not None:
        return f"{word} {pick(rng, _NOT)} {_colour(noun.not_colour, rng)}"
    if noun.not_word is not None:
        if rng.random() < 0.3:
            return f"{word} {pick(rng, _EXCEPT)} the {noun.not_word}"
        return f"{word} {pick(rng, _NOT)} {_a(noun.not_word)} {noun.not_word}"
    return word


def _anchor(noun: Noun, rng: np.random.Generator) -> str:
    words = _noun(noun, rng, short=True)
    return words if rng.random() < 0.1 else f"the {words}"


def _colour(colour: str, rng: np.random.Generator) -> str:
    return pick(rng, _COLOURS[colour]) if colour in _COLOURS else colour


def _a(word: str) -> str:
    return "an" if word[0] in "aeio" else "a"


def _placed(noun: Noun, place: Place, rng: np.random.Generator) -> str:
    key = (place.across, place.down)
    words, draw = _noun(noun, rng, short=True), rng.random()
    if draw < 0.22:
        return f"{pick(rng, _BEFORE_NOUN[key])} {words}"
    where = pick(rng, _PLACES[key])
    if where.startswith(_NO_ARTICLE):
        if draw < 0.30:
            return f"{where} the {words}"
        if draw < 0.42:
            return f"{words} {pick(rng, _WHICH_IS)} {where}"
    return f"{words} {where}"


def _ranked(expression: Expression, rank: Rank, rng: np.random.Generator) -> str:
    words = _noun(expression.noun, rng, short=True)
    if rank.anchor is not None:
        ways = _NEAREST if rank.place == 0 else _FARTHEST
        return f"{words} {pick(rng, ways)} {_anchor(rank.anchor, rng)}"
    if rank.lead == BIG_LEAD:
        return f"{pick(rng, _SMALL if rank.place == 0 else _BIG)} {words}"
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
        which = pick(rng, _EXTREMES[rank.axis, rank.place][0])
    number = _counts(total, rng)
    if rng.random() < 0.25:
        return f"{pick(rng, ('of', 'out of', 'among'))} the {number} {many} the {which} one"
    return f"{which} {pick(rng, ('one of', 'of', 'one out of'))} the {number} {many}"


def _counts(number: int, rng: np.random.Generator) -> str:
    return str(number) if rng.random() < 0.15 else _NUMBERS.get(number, "one")
