"""What expressions about named scenes mean, and when they are true.

A noun ("the red mug", "the fruit that is not red") is true of a thing iff each of its words is. A
qualifier narrows it:

- a place ("on the left", "at the top right"), judged by the middle of the visible box;
- a rank ("leftmost", "second from the right", "smallest", "nearest to the dog"), judged among the
  things that the noun is true of; with a total ("of the three mugs") there must be as many;
- a relation ("left of the dog", "behind the taxi"), whose anchor must itself mean one thing.

Colours, places and relations are true, false or doubtful, with a margin between true and false, and
ranks need a margin to their neighbours. An expression may be used for a thing iff it is true of it
and *false* of every other: one doubtful thing is enough to reject it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

import numpy as np

from cris_train.synthetic.expressions import Truth
from cris_train.synthetic.named.facts import Facts, Seen

COLOUR_TRUE: Final = 0.42  # share of pixels that surely are; no other colour has a larger one
COLOUR_FALSE: Final = 0.12  # share of pixels that perhaps are
# Least lead over the next in a ranking: lengths of the shorter side, ratios of sizes.
LEAD: Final = {"x": 0.07, "y": 0.07, "distance": 0.08}
SIZE_LEAD: Final = 1.15
BIG_LEAD: Final = 1.35  # "the big mug" says more than "the biggest mug"


class Kind(StrEnum):
    """What an expression is counted as: what it needs beyond a name."""

    NAME = "name"
    COLOUR = "colour"
    SIZE = "size"
    POSITION = "position"
    SUPERLATIVE = "superlative"
    RELATION = "relation"
    ORDINAL = "ordinal"
    COUNT = "count"
    NEGATION = "negation"


@dataclass(frozen=True)
class Noun:
    """What is spoken of.

    Attributes:
        word: A name or a broader word; None for "thing".
        colour: A colour that it has.
        not_colour: A colour that it has not.
        not_word: A word that is not true of it.
    """

    word: str | None
    colour: str | None = None
    not_colour: str | None = None
    not_word: str | None = None


@dataclass(frozen=True)
class Place:
    """Where in the picture: -1 left or top, 1 right or bottom, 0 the middle, None anywhere."""

    across: int | None
    down: int | None


@dataclass(frozen=True)
class Rank:
    """Which one in an order.

    Attributes:
        axis: "x" from the left, "y" from the top, "size" from the smallest, "distance" from
            `anchor`.
        place: From 0; -1 is the last.
        total: How many there are; None where that is not said.
        anchor: For "distance".
        lead: Ratio to the next in size.
    """

    axis: str
    place: int
    total: int | None = None
    anchor: Noun | None = None
    lead: float = SIZE_LEAD


class Side(StrEnum):
    """Where, seen from an anchor."""

    LEFT = "left"
    RIGHT = "right"
    ABOVE = "above"
    BELOW = "below"
    BESIDE = "beside"
    BEFORE = "before"
    BEHIND = "behind"


@dataclass(frozen=True)
class Relation:
    """On which side of what."""

    side: Side
    anchor: Noun


@dataclass(frozen=True)
class Expression:
    """A noun and at most one qualifier."""

    kind: Kind
    noun: Noun
    qualifier: Place | Rank | Relation | None = None


def fits(noun: Noun, item: Seen) -> Truth:
    """Whether a noun is true of a thing."""
    verdict = Truth.TRUE
    if noun.word is not None and noun.word not in item.words:
        return Truth.FALSE
    if noun.not_word is not None and noun.not_word in item.words:
        return Truth.FALSE
    if noun.colour is not None:
        verdict = _coloured(noun.colour, item)
    if noun.not_colour is not None:
        # "Not red" is true where "red" is false, and the other way round.
        verdict = {Truth.TRUE: Truth.FALSE, Truth.FALSE: Truth.TRUE}.get(
            _coloured(noun.not_colour, item), Truth.DOUBTFUL
        )
    return verdict


def referent(expression: Expression, facts: Facts) -> int | None:
    """Index of the one thing that is meant; None if there is none, several, or it is doubtful."""
    candidates = _fitting(expression.noun, facts)
    if not candidates:
        return None
    qualifier = expression.qualifier
    if isinstance(qualifier, Rank):
        return _ranked(qualifier, facts, candidates)
    verdicts = dict.fromkeys(candidates, Truth.TRUE)
    if isinstance(qualifier, Place):
        verdicts = {i: _at(qualifier, facts, facts.items[i]) for i in candidates}
    if isinstance(qualifier, Relation):
        anchor = only(qualifier.anchor, facts)
        if anchor is None:
            return None
        others = [i for i in candidates if i != anchor]
        verdicts = {i: _beside(qualifier.side, facts, i, anchor) for i in others}
    meant = [i for i, verdict in verdicts.items() if verdict is Truth.TRUE]
    if len(meant) != 1 or Truth.DOUBTFUL in verdicts.values():
        return None
    return meant[0]


def only(noun: Noun, facts: Facts) -> int | None:
    """The one thing that a noun is true of, or None."""
    found = _fitting(noun, facts)
    return found[0] if found is not None and len(found) == 1 else None


def count(noun: Noun, facts: Facts) -> int:
    """How many things a noun is true of; 0 where one is doubtful."""
    return len(_fitting(noun, facts) or ())


def _fitting(noun: Noun, facts: Facts) -> list[int] | None:
    """Indices of the things a noun is true of; None where one is doubtful or behind them all."""
    words = {noun.word, noun.not_word} - {None}
    if words & facts.taken:
        return None  # the background shows one, too
    verdicts = [fits(noun, item) for item in facts.items]
    if Truth.DOUBTFUL in verdicts:
        return None
    return [i for i, verdict in enumerate(verdicts) if verdict is Truth.TRUE]


def _coloured(colour: str, item: Seen) -> Truth:
    sure, perhaps = item.colours[colour]
    true = sure >= COLOUR_TRUE and sure == max(other for other, _ in item.colours.values())
    return _verdict(true, perhaps <= COLOUR_FALSE)


def _at(place: Place, facts: Facts, item: Seen) -> Truth:
    verdicts = [
        _along(wanted, value)
        for wanted, value in (
            (place.across, item.x / facts.width),
            (place.down, item.y / facts.height),
        )
        if wanted is not None
    ]
    return min(verdicts, key=lambda verdict: verdict.value)


def _along(wanted: int, value: float) -> Truth:
    """`value` is 0 at the left or top and 1 at the right or bottom."""
    if wanted == 0:
        return _verdict(abs(value - 0.5) < 0.13, abs(value - 0.5) > 0.23)
    from_edge = value if wanted < 0 else 1.0 - value
    return _verdict(from_edge < 0.38, from_edge > 0.5)


def _ranked(rank: Rank, facts: Facts, candidates: list[int]) -> int | None:
    if rank.anchor is not None:
        anchor = only(rank.anchor, facts)
        if anchor is None:
            return None
        candidates = [i for i in candidates if i != anchor]
        centre = (facts.items[anchor].x, facts.items[anchor].y)
    else:
        centre = (0.0, 0.0)
    total = len(candidates)
    place = rank.place if rank.place >= 0 else total + rank.place
    if total < 2 or not 0 <= place < total or rank.total not in (None, total):
        return None
    measure = {
        i: {
            "x": item.x / facts.short_side,
            "y": item.y / facts.short_side,
            "size": float(np.log(item.size)),
            "distance": float(np.hypot(item.x - centre[0], item.y - centre[1])) / facts.short_side,
        }[rank.axis]
        for i, item in ((i, facts.items[i]) for i in candidates)
    }
    lead = float(np.log(rank.lead)) if rank.axis == "size" else LEAD[rank.axis]
    order = sorted(candidates, key=lambda i: measure[i])
    near = order[max(0, place - 1) : place + 2]
    clear = all(measure[after] - measure[before] >= lead for before, after in pairwise(near))
    return order[place] if clear else None


def _beside(side: Side, facts: Facts, index: int, anchor: int) -> Truth:
    item, other = facts.items[index], facts.items[anchor]
    if side is Side.BEFORE:
        return _verdict(anchor in item.covers, anchor not in item.touches)
    if side is Side.BEHIND:
        return _verdict(index in other.covers, anchor not in item.touches)
    if side is Side.BESIDE:
        gap = _gap(item.box, other.box) / facts.short_side
        return _verdict(gap < 0.05, gap > 0.17)
    dx = (item.x - other.x) / facts.short_side
    dy = (item.y - other.y) / facts.short_side
    along, across = {
        Side.LEFT: (-dx, dy),
        Side.RIGHT: (dx, dy),
        Side.ABOVE: (-dy, dx),
        Side.BELOW: (dy, dx),
    }[side]
    # True also in the strict reading (mostly in that direction), false also in the loose one.
    return _verdict(along > 0.12 and along > 0.6 * abs(across), along < 0.04)


def _gap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Distance between two boxes, 0 where they meet."""
    across = max(a[0] - b[2], b[0] - a[2], 0)
    down = max(a[1] - b[3], b[1] - a[3], 0)
    return float(np.hypot(across, down))


def _verdict(true: bool, false: bool) -> Truth:
    return Truth.TRUE if true else Truth.FALSE if false else Truth.DOUBTFUL
