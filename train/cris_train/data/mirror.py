"""What is said of a picture's mirror image: "left" and "right" change places, or there is no way.

A mirrored picture has another left, but the same top, sizes and colours. Some words mean a side
without saying so ("the second man", counted from the left), some say "right" and mean no side
("right behind him"), and letters and numbers do not survive a mirror. Whatever may be such an
expression is not mirrored: a picture less is cheaper than a wrong answer.
"""

from __future__ import annotations

import re
from typing import Final

_PAIRS: Final = tuple(
    (before + "left" + after, before + "right" + after)
    for before in ("", "top", "bottom", "upper", "lower", "far", "front", "back", "mid", "middle")
    for after in ("", "most", "hand", "side", "er", "ward", "wards", "est")
)
SWAPPED: Final = {one: other for pair in _PAIRS for one, other in (pair, pair[::-1])}

# Words with "left" or "right" in them that mean no side, and stay.
_OTHER: Final = re.compile(r"\w*(bright|fright|upright|wright|cleft|copyright)\w*")
_SIDE: Final = re.compile(r"\w*(left|right)\w*")
# Short for a side, misspelt, or said in another language.
_SHORT: Final = "l r lt rt lf lft lef letf rgt rigt rigth rihgt righ rite lhs rhs"
_FOREIGN: Final = "links rechts gauche droite izquierda izquierdo derecha derecho sinistra destra"
# A side that is meant and not named, or a turn that a mirror reverses.
_MEANT: Final = (
    "west east western eastern clockwise counterclockwise anticlockwise clock oclock "
    "first second third fourth fifth sixth last next previous starting number letter letters word "
    "words text reads reading says saying spells logo license"
)
_UNSAFE: Final = frozenset(f"{_SHORT} {_FOREIGN} {_MEANT}".split())
# "Right behind", "right in front", "left over": no side, or a doubtful one.
_ADVERB: Final = re.compile(
    r"\bright (behind|in|next|above|below|under|underneath|beneath|at|beside|besides|after|before"
    r"|by|there|here|now|near|against|up|down|about|away|angle|angled|beyond|between|inside|along"
    r"|across|over|around|into|through|outside|where|that)\b"
    r"|\b(all|just) right\b"
    r"|\bleft (over|alone|behind|out|open|on|off|unattended|empty|untouched|there|uneaten)\b"
    r"|\b(is|are|was|were|been|has|have|had|being|gets|only|one|ones|pieces?|nobody|nothing) left$"
)


def mirrored(expression: str) -> str | None:
    """What to say of the mirror image; None if that cannot be told safely.

    An expression that names no side stays as it is.
    """
    text = expression.lower()
    if not text.isascii() or any(character.isdigit() for character in text):
        return None
    if _ADVERB.search(" ".join(re.findall(r"\w+", text))):
        return None
    for word in re.findall(r"\w+", text):
        if word in _UNSAFE:
            return None
        if word not in SWAPPED and _SIDE.fullmatch(word) and not _OTHER.fullmatch(word):
            return None
    return re.sub(r"\w+", lambda match: SWAPPED.get(match[0], match[0]), text)


# Where in the picture: moving the picture could make it wrong.
_AT: Final = (
    "top bottom upper lower uppermost lowermost topmost bottommost middle center centre central "
    "centermost middlemost corner edge edges side border screen picture image photo frame"
)
_PLACES: Final = frozenset(_AT.split())


def says_where(expression: str) -> bool:
    """Whether an expression may depend on where in the picture something is."""
    words = re.findall(r"\w+", expression.lower())
    sides = (w in _UNSAFE or (_SIDE.fullmatch(w) and not _OTHER.fullmatch(w)) for w in words)
    return any(sides) or not _PLACES.isdisjoint(words)
