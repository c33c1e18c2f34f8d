"""Which expressions are said of a thing in a scene."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Final

import numpy as np

from cris_train.synthetic.expressions import Description, Truth
from cris_train.synthetic.named.colours import COLOURS
from cris_train.synthetic.named.facts import Facts, Seen
from cris_train.synthetic.named.meaning import (
    BIG_LEAD,
    Expression,
    Kind,
    Noun,
    Place,
    Rank,
    Relation,
    Side,
    count,
    fits,
    referent,
)
from cris_train.synthetic.named.scenes import pick
from cris_train.synthetic.named.wording import plural, say, with_slip

# Attempts per kind before it is given up, and how many of the first insist that the qualifier is
# needed. Most draws of a relation are not true, and a name that is the only one is often enough.
DRAWS: Final = 8
NEEDED_DRAWS: Final = 6
RELATION_DRAWS: Final = 16
RELATION_NEEDED_DRAWS: Final = 5
MOST: Final = 5  # expressions of a thing
MOST_WORDS: Final = 12
SLIPS: Final = 0.06  # share of expressions with a slip of the finger
HELD_OUT: Final = 5  # one pair of five is kept from training
# What is the hardest to learn or the seldomest to be possible is tried first in most scenes, and
# relations twice.
FIRST: Final = (
    *(Kind.RELATION, Kind.RELATION, Kind.ORDINAL),
    *(Kind.NEGATION, Kind.NAME, Kind.COLOUR),
)
_PLACES: Final = (
    *(Place(x, None) for x in (-1, 1)),
    *(Place(None, y) for y in (-1, 1)),
    Place(0, 0),
    *(Place(x, y) for x in (-1, 1) for y in (-1, 1)),
)


class Compositions(Enum):
    """Which pairs of a name and what is said of it may be used.

    SEEN: those that training has. UNSEEN: only expressions with a pair that training never has.
    """

    SEEN = "seen"
    UNSEEN = "unseen"


def describe(
    facts: Facts,
    target: int,
    rng: np.random.Generator,
    compositions: Compositions,
    *,
    names_only: bool = False,
) -> tuple[Description, ...]:
    """Draw distinct expressions that mean thing `target`; none where it has nothing of its own."""
    rest = [kind for kind in Kind if kind not in FIRST]
    kinds = [*_shuffled(rng, FIRST), *_shuffled(rng, rest)]
    if rng.random() < 0.4:
        kinds = _shuffled(rng, kinds)
    if names_only:
        kinds = [Kind.NAME]
    found: dict[str, Description] = {}
    for kind in kinds:
        if len(found) == MOST:
            break
        draws, needed = DRAWS, NEEDED_DRAWS
        if kind is Kind.RELATION:
            draws, needed = RELATION_DRAWS, RELATION_NEEDED_DRAWS
        for attempt in range(draws):
            expression = _draw(kind, facts, target, rng)
            if expression is None or referent(expression, facts) != target:
                continue
            if attempt < needed and not _needed(expression, facts):
                continue
            if not _allowed(expression, facts, target, compositions):
                continue
            text = say(expression, rng)
            if len(text.split()) > MOST_WORDS:
                continue
            if rng.random() < SLIPS:
                text = with_slip(text, rng)
            found.setdefault(text, Description(text, kind))
            break
    return tuple(found.values())


def held_out(name: str, said: str) -> bool:
    """Whether training never says `said` of `name`: a fixed fifth of all pairs."""
    return zlib.crc32(f"{name}|{said}".encode()) % HELD_OUT == 0


def pairs(expression: Expression, facts: Facts, target: int) -> Iterator[tuple[str, str]]:
    """What an expression says of what: (name, colour), (name, place), (name, anchor's name) ..."""
    noun, qualifier = expression.noun, expression.qualifier
    name = noun.word if noun.word is not None else facts.items[target].name
    yield from _noun_pairs(noun, name)
    if isinstance(qualifier, Place):
        yield name, f"at {qualifier.across} {qualifier.down}"
    elif isinstance(qualifier, Relation):
        anchor = qualifier.anchor.word or "thing"
        yield name, f"beside {anchor}"
        yield from _noun_pairs(qualifier.anchor, anchor)
    elif isinstance(qualifier, Rank):
        yield name, f"rank {qualifier.axis} {qualifier.place} {qualifier.total}"
        if qualifier.anchor is not None:
            yield name, f"beside {qualifier.anchor.word or 'thing'}"


def _noun_pairs(noun: Noun, name: str) -> Iterator[tuple[str, str]]:
    if noun.colour is not None:
        yield name, noun.colour
    if noun.not_colour is not None:
        yield name, f"not {noun.not_colour}"
    if noun.not_word is not None:
        yield name, f"not {noun.not_word}"


def _allowed(expression: Expression, facts: Facts, target: int, compositions: Compositions) -> bool:
    verdicts = [held_out(*pair) for pair in pairs(expression, facts, target)]
    if compositions is Compositions.SEEN:
        return not any(verdicts)
    return any(verdicts) or not verdicts  # a name alone has nothing to compose


def _needed(expression: Expression, facts: Facts) -> bool:
    """Whether what is said beyond the word narrows it down."""
    noun = expression.noun
    if expression.qualifier is not None:
        return referent(Expression(Kind.NAME, noun), facts) is None
    if noun != Noun(noun.word):
        return referent(Expression(Kind.NAME, Noun(noun.word)), facts) is None
    return True


def _draw(kind: Kind, facts: Facts, target: int, rng: np.random.Generator) -> Expression | None:
    item = facts.items[target]
    word = _word(item, rng)
    plain = Noun(word)
    noun = _perhaps_coloured(item, word, rng, 0.15)
    if kind is Kind.NAME:
        return Expression(kind, plain)
    if kind is Kind.COLOUR:
        colour = _colour(item)
        general = rng.random() < 0.12
        return None if colour is None else Expression(kind, Noun(None if general else word, colour))
    if kind is Kind.SIZE:
        return Expression(kind, noun, Rank("size", pick(rng, (0, -1)), lead=BIG_LEAD))
    if kind is Kind.POSITION:
        return Expression(kind, noun, pick(rng, _PLACES))
    if kind is Kind.SUPERLATIVE:
        axis = pick(rng, ("x", "x", "y", "size", "size"))
        return Expression(kind, noun, Rank(axis, pick(rng, (0, -1))))
    if kind is Kind.NEGATION:
        return _negation(facts, target, rng)
    if kind is Kind.RELATION:
        return _relation(facts, target, noun, rng)
    return _in_order(kind, facts, noun, rng)


def _in_order(kind: Kind, facts: Facts, noun: Noun, rng: np.random.Generator) -> Expression | None:
    """ "second from the left", "middle one of the three"."""
    total = count(noun, facts)
    axis = pick(rng, ("x", "x", "x", "y", "size"))
    if kind is Kind.ORDINAL:
        if total < 3:
            return None
        number = int(rng.integers(0 if axis != "size" else 1, min(total, 4)))
        back = rng.random() < 0.4
        return Expression(kind, noun, Rank(axis, -number - 1 if back else number))
    if total < 2 or noun.word is None or plural(noun.word) is None:
        return None
    middle = [total // 2] if total == 3 and axis == "x" else []
    return Expression(kind, noun, Rank(axis, pick(rng, [0, -1, *middle]), total=total))


def _relation(facts: Facts, target: int, noun: Noun, rng: np.random.Generator) -> Expression | None:
    others = [i for i in range(len(facts.items)) if i != target]
    if not others:
        return None
    other = pick(rng, others)
    anchor = _perhaps_coloured(facts.items[other], _word(facts.items[other], rng), rng, 0.25)
    if rng.random() < 0.12:
        noun = Noun(None)
    if rng.random() < 0.15:
        return Expression(
            Kind.RELATION, noun, Rank("distance", pick(rng, (0, 0, -1)), anchor=anchor)
        )
    return Expression(Kind.RELATION, noun, Relation(pick(rng, tuple(Side)), anchor))


def _negation(facts: Facts, target: int, rng: np.random.Generator) -> Expression | None:
    """ "the fruit that is not red", "the animal that is not a dog"."""
    item = facts.items[target]
    others = [other for i, other in enumerate(facts.items) if i != target]
    if not others:
        return None
    other = pick(rng, others)
    shared = sorted(item.words & other.words)
    if not shared:
        return None
    word = pick(rng, shared)
    colour = _colour(other)
    if colour is not None and rng.random() < 0.5:
        return Expression(Kind.NEGATION, Noun(word, not_colour=colour))
    own = sorted(other.words - item.words)
    if not own:
        return None
    name = other.name if other.name in own else pick(rng, own)
    # "A glasses" is nothing that people say.
    return None if plural(name) is None else Expression(Kind.NEGATION, Noun(word, not_word=name))


def _word(item: Seen, rng: np.random.Generator) -> str:
    """Its usual name in most cases, else a synonym or a broader word."""
    return item.name if rng.random() < 0.55 else pick(rng, sorted(item.words))


def _perhaps_coloured(item: Seen, word: str, rng: np.random.Generator, share: float) -> Noun:
    return Noun(word, _colour(item) if rng.random() < share else None)


def _colour(item: Seen) -> str | None:
    """The colour that is true of it, if one is."""
    true = (c for c in COLOURS if fits(Noun(None, c), item) is Truth.TRUE)
    return next(true, None)


def _shuffled(rng: np.random.Generator, kinds: Sequence[Kind]) -> list[Kind]:
    return [kinds[int(i)] for i in rng.permutation(len(kinds))]
