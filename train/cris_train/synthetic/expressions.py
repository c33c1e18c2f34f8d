"""Referring expressions for generated scenes, each true of exactly one object.

The rule. A noun phrase ([size] [colour] shape, or "object" for any shape) is true of an object iff
every word is. A qualifier narrows it:

- a position ("on the left"), judged by the object's centre;
- a superlative ("leftmost", "largest"), judged among the objects that the noun phrase fits;
- a relation ("left of the blue square"), judged between centres; its anchor phrase must itself fit
  exactly one object of the scene, and the target is another one. Centres within 4% of the shorter
  side are level: neither is left of, or above, the other.

Positions, superlatives and relations are judged as true, false or doubtful, with a margin between
true and false. An expression may be used for a target iff it is true of the target and *false* of
every other object: one doubtful object is enough to reject it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TypeVar

import numpy as np

from cris_train.synthetic.scenes import Colour, Scene, SceneObject, Shape, Size

_T = TypeVar("_T")


class ExpressionKind(StrEnum):
    """What an expression needs beyond colour and shape."""

    PLAIN = "plain"
    SIZE = "size"
    POSITION = "position"
    SUPERLATIVE = "superlative"
    RELATION = "relation"


class Truth(Enum):
    """Verdict of a rule with a margin."""

    FALSE = 0
    DOUBTFUL = 1
    TRUE = 2


class Position(StrEnum):
    """Where in the picture."""

    LEFT = "left"
    RIGHT = "right"
    TOP = "top"
    BOTTOM = "bottom"
    MIDDLE = "middle"


class Superlative(StrEnum):
    """Which one among those that the noun phrase fits."""

    LEFTMOST = "leftmost"
    RIGHTMOST = "rightmost"
    TOPMOST = "topmost"
    BOTTOMMOST = "bottommost"
    LARGEST = "largest"
    SMALLEST = "smallest"


class Relation(StrEnum):
    """Where, seen from the anchor."""

    LEFT = "left of"
    RIGHT = "right of"
    ABOVE = "above"
    BELOW = "below"


@dataclass(frozen=True)
class Phrase:
    """A noun phrase; None leaves an attribute open."""

    size: Size | None
    colour: Colour | None
    shape: Shape | None

    def fits(self, item: SceneObject) -> bool:
        """Whether every word is true of `item`."""
        return (
            (self.size is None or self.size is item.size)
            and (self.colour is None or self.colour is item.colour)
            and (self.shape is None or self.shape is item.shape)
        )

    def words(self, noun: str) -> str:
        """The phrase without article; `noun` stands in for an open shape."""
        return " ".join(
            part for part in (self.size, self.colour, self.shape or noun) if part is not None
        )


@dataclass(frozen=True)
class Expression:
    """An expression's meaning: a phrase and at most one qualifier (a relation has an anchor)."""

    phrase: Phrase
    qualifier: Position | Superlative | Relation | None = None
    anchor: Phrase | None = None

    @property
    def kind(self) -> ExpressionKind:
        """The class this expression is counted in."""
        if isinstance(self.qualifier, Position):
            return ExpressionKind.POSITION
        if isinstance(self.qualifier, Superlative):
            return ExpressionKind.SUPERLATIVE
        if isinstance(self.qualifier, Relation):
            return ExpressionKind.RELATION
        return ExpressionKind.PLAIN if self.phrase.size is None else ExpressionKind.SIZE


@dataclass(frozen=True)
class Description:
    """A sentence about one object of a scene, and the class it is counted in."""

    text: str
    kind: StrEnum


def referent(expression: Expression, scene: Scene) -> int | None:
    """Index of the one object the expression means, or None if it is ambiguous or void."""
    candidates = [i for i, item in enumerate(scene.objects) if expression.phrase.fits(item)]
    anchor: int | None = None
    if expression.anchor is not None:
        anchors = [i for i, item in enumerate(scene.objects) if expression.anchor.fits(item)]
        if len(anchors) != 1:
            return None
        anchor = anchors[0]
        candidates = [i for i in candidates if i != anchor]
    verdicts = {i: _judge(expression.qualifier, scene, i, candidates, anchor) for i in candidates}
    meant = [i for i, verdict in verdicts.items() if verdict is Truth.TRUE]
    if len(meant) != 1 or Truth.DOUBTFUL in verdicts.values():
        return None
    return meant[0]


def _judge(
    qualifier: Position | Superlative | Relation | None,
    scene: Scene,
    index: int,
    candidates: list[int],
    anchor: int | None,
) -> Truth:
    if isinstance(qualifier, Position):
        return _judge_position(qualifier, scene, scene.objects[index])
    if isinstance(qualifier, Superlative):
        others = [scene.objects[i] for i in candidates if i != index]
        return _judge_superlative(qualifier, scene, scene.objects[index], others)
    if isinstance(qualifier, Relation):
        assert anchor is not None
        return _judge_relation(qualifier, scene, scene.objects[index], scene.objects[anchor])
    return Truth.TRUE


def _verdict(true: bool, false: bool) -> Truth:
    return Truth.TRUE if true else Truth.FALSE if false else Truth.DOUBTFUL


def _judge_position(position: Position, scene: Scene, item: SceneObject) -> Truth:
    x, y = item.x / scene.width, item.y / scene.height
    if position is Position.MIDDLE:
        off_centre = max(abs(x - 0.5), abs(y - 0.5))
        return _verdict(off_centre < 0.15, off_centre > 0.25)
    along = {
        Position.LEFT: x,
        Position.RIGHT: 1.0 - x,
        Position.TOP: y,
        Position.BOTTOM: 1.0 - y,
    }[position]
    return _verdict(along < 0.38, along > 0.50)


def _judge_superlative(
    superlative: Superlative, scene: Scene, item: SceneObject, others: list[SceneObject]
) -> Truth:
    if not others:
        return Truth.DOUBTFUL  # "the largest" of one is no description
    measures: dict[Superlative, Callable[[SceneObject], float]] = {
        Superlative.LEFTMOST: lambda o: -o.x / scene.short_side,
        Superlative.RIGHTMOST: lambda o: o.x / scene.short_side,
        Superlative.TOPMOST: lambda o: -o.y / scene.short_side,
        Superlative.BOTTOMMOST: lambda o: o.y / scene.short_side,
        # Halved logarithm: the margin below then asks for 1.17 times the diameter.
        Superlative.LARGEST: lambda o: 0.5 * float(np.log(o.diameter)),
        Superlative.SMALLEST: lambda o: -0.5 * float(np.log(o.diameter)),
    }
    measure = measures[superlative]
    lead = measure(item) - max(measure(other) for other in others)
    return _verdict(lead > 0.08, lead < 0.0)


def _judge_relation(
    relation: Relation, scene: Scene, item: SceneObject, anchor: SceneObject
) -> Truth:
    dx = (item.x - anchor.x) / scene.short_side
    dy = (item.y - anchor.y) / scene.short_side
    along, across = {
        Relation.LEFT: (-dx, dy),
        Relation.RIGHT: (dx, dy),
        Relation.ABOVE: (-dy, dx),
        Relation.BELOW: (dy, dx),
    }[relation]
    # True also in the strict reading (mostly in that direction), false also in the loose one.
    return _verdict(along > 0.12 and along > 0.6 * abs(across), along < 0.04)


_POSITION_WORDS: dict[Position, tuple[str, ...]] = {
    Position.LEFT: ("on the left", "on the left side"),
    Position.RIGHT: ("on the right", "on the right side"),
    Position.TOP: ("at the top",),
    Position.BOTTOM: ("at the bottom",),
    Position.MIDDLE: ("in the middle", "in the centre"),
}
_SUPERLATIVE_WORDS: dict[Superlative, tuple[str, ...]] = {
    Superlative.LEFTMOST: ("leftmost",),
    Superlative.RIGHTMOST: ("rightmost",),
    Superlative.TOPMOST: ("topmost", "highest"),
    Superlative.BOTTOMMOST: ("bottommost", "lowest"),
    Superlative.LARGEST: ("largest", "biggest"),
    Superlative.SMALLEST: ("smallest",),
}
_RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    Relation.LEFT: ("left of", "to the left of"),
    Relation.RIGHT: ("right of", "to the right of"),
    Relation.ABOVE: ("above",),
    Relation.BELOW: ("below", "under"),
}
_NOUNS = ("object", "thing")
DRAWS = 12  # attempts per sentence before it is given up
NEEDED_DRAWS = 8  # of these, the first insist that the qualifier is needed


def word(expression: Expression, rng: np.random.Generator) -> str:
    """Put a meaning into words, drawing among synonyms."""
    words = expression.phrase.words(_pick(rng, _NOUNS))
    qualifier = expression.qualifier
    if isinstance(qualifier, Superlative):
        words = f"{_pick(rng, _SUPERLATIVE_WORDS[qualifier])} {words}"
    # As in RefCOCO, people often drop the article.
    article = "the " if rng.random() < 0.7 else ""
    if isinstance(qualifier, Position):
        return f"{article}{words} {_pick(rng, _POSITION_WORDS[qualifier])}"
    if isinstance(qualifier, Relation):
        assert expression.anchor is not None
        anchor = expression.anchor.words(_pick(rng, _NOUNS))
        return f"{article}{words} {_pick(rng, _RELATION_WORDS[qualifier])} the {anchor}"
    return article + words


def describe(scene: Scene, target: int, rng: np.random.Generator) -> tuple[Description, ...]:
    """Draw distinct unambiguous sentences about object `target`: at most one of each kind but
    relations, of which there may be two. An object without any distinguishing trait gets none."""
    wanted = (*ExpressionKind, ExpressionKind.RELATION)
    found: dict[str, Description] = {}
    for kind in wanted:
        for attempt in range(DRAWS):
            expression = _draw(kind, scene, target, rng)
            if expression is None or expression.kind is not kind:
                continue
            if referent(expression, scene) != target:
                continue
            if attempt < NEEDED_DRAWS and not _needed(expression, scene):
                continue
            text = word(expression, rng)
            found.setdefault(text, Description(text, kind))
            break
    return tuple(found.values())


def _needed(expression: Expression, scene: Scene) -> bool:
    """Whether the expression would be ambiguous without its qualifier (or its size word)."""
    if expression.qualifier is not None:
        return referent(Expression(expression.phrase), scene) is None
    if expression.phrase.size is not None:
        bare = Phrase(None, expression.phrase.colour, expression.phrase.shape)
        return referent(Expression(bare), scene) is None
    return True


def _draw(
    kind: ExpressionKind, scene: Scene, target: int, rng: np.random.Generator
) -> Expression | None:
    never = (ExpressionKind.PLAIN, ExpressionKind.SUPERLATIVE)
    sized = 0.0 if kind in never else 1.0 if kind is ExpressionKind.SIZE else 0.25
    phrase = _draw_phrase(scene.objects[target], sized, rng)
    if kind is ExpressionKind.POSITION:
        return Expression(phrase, _pick(rng, tuple(Position)))
    if kind is ExpressionKind.SUPERLATIVE:
        return Expression(phrase, _pick(rng, tuple(Superlative)))
    if kind is ExpressionKind.RELATION:
        anchor = int(rng.integers(len(scene.objects)))
        if anchor == target:
            return None
        anchor_phrase = _draw_phrase(scene.objects[anchor], 0.25, rng)
        return Expression(phrase, _pick(rng, tuple(Relation)), anchor_phrase)
    return Expression(phrase)


def _draw_phrase(item: SceneObject, sized: float, rng: np.random.Generator) -> Phrase:
    size = item.size if item.size is not Size.MEDIUM and rng.random() < sized else None
    drop = rng.random()
    colour = None if drop < 0.2 else item.colour
    shape = None if drop > 0.8 else item.shape
    return Phrase(size, colour, shape)


def _pick(rng: np.random.Generator, options: tuple[_T, ...]) -> _T:
    return options[int(rng.integers(len(options)))]
