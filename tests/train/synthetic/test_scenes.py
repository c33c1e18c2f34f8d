"""Generated scenes: the same seed gives the same scene, and every sentence fits one object only."""

import re

import numpy as np
import pytest

from cris_deploy.errors import InputError
from cris_train.synthetic.expressions import (
    Expression,
    Phrase,
    Position,
    Relation,
    Superlative,
    describe,
    referent,
)
from cris_train.synthetic.refer_files import split_scene
from cris_train.synthetic.render import render
from cris_train.synthetic.scenes import (
    Colour,
    Scene,
    SceneObject,
    Shape,
    Size,
    draw_scene,
    scene_rng,
)

SCENES = 150

# An independent reading of the sentences: from text alone, by plain comparisons, with centres
# within 4% of the shorter side taken as level. What the generator allows must hold in this reading
# for the target and for no other object.
LEVEL = 0.04
COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "white", "black"]
SHAPES = ["circle", "square", "triangle", "star", "cross", "heart"]
FIRST = {"leftmost": (0, -1), "rightmost": (0, 1), "topmost": (1, -1), "highest": (1, -1),
         "bottommost": (1, 1), "lowest": (1, 1), "largest": (2, 1), "biggest": (2, 1),
         "smallest": (2, -1)}  # fmt: skip
RELATIONS = re.compile(r" (?:to the )?(left of|right of|above|below|under) the ")
PLACES = re.compile(r" (?:on the|at the|in the) (left|right|top|bottom|middle|centre)(?: side)?$")


def understood(text: str, scene: Scene) -> list[int]:
    """Indices of all objects that the sentence could mean."""
    everything = list(range(len(scene.objects)))
    relation = RELATIONS.search(text)
    place = PLACES.search(text)
    if relation:
        anchors = noun_phrase(text[relation.end() :], scene, everything)
        assert len(anchors) == 1, f"anchor of {text!r} fits {len(anchors)} objects"
        anchor = scene.objects[anchors[0]]
        found = noun_phrase(text[: relation.start()], scene, everything)
        side = relation[1]

        def beside(item: SceneObject) -> bool:
            dx, dy = item.x - anchor.x, item.y - anchor.y
            along = {"left of": -dx, "right of": dx, "above": -dy}.get(side, dy)
            return along > LEVEL * min(scene.width, scene.height)

        return [i for i in found if i != anchors[0] and beside(scene.objects[i])]
    if place:
        found = noun_phrase(text[: place.start()], scene, everything)
        return [i for i in found if lies(scene.objects[i], scene, place[1])]
    return noun_phrase(text, scene, everything)


def lies(item: SceneObject, scene: Scene, place: str) -> bool:
    x, y = item.x / scene.width, item.y / scene.height
    if place in ("middle", "centre"):
        return 0.25 < x < 0.75 and 0.25 < y < 0.75
    return {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}[place]


def noun_phrase(words: str, scene: Scene, among: list[int]) -> list[int]:
    extreme = None
    for word in words.removeprefix("the ").split():
        if word in FIRST:
            extreme = FIRST[word]
        elif word in COLOURS:
            among = [i for i in among if scene.objects[i].colour.value == word]
        elif word in SHAPES:
            among = [i for i in among if scene.objects[i].shape.value == word]
        elif word in ("small", "large"):
            among = [i for i in among if scene.objects[i].size.value == word]
        else:
            assert word in ("object", "thing"), f"unknown word {word!r}"
    if extreme and among:
        axis, sign = extreme
        values = [(o.x, o.y, o.diameter)[axis] for o in (scene.objects[i] for i in among)]
        among = [among[int(np.argmax(sign * np.array(values)))]]
    return among


def scenes() -> list[tuple[Scene, np.random.Generator]]:
    return [split_scene(11, "test", index) for index in range(SCENES)]


def test_every_sentence_means_exactly_its_object() -> None:
    kinds: dict[str, int] = {}
    for scene, rng in scenes():
        for target in range(len(scene.objects)):
            for description in describe(scene, target, rng):
                assert understood(description.text, scene) == [target], description.text
                kinds[description.kind] = kinds.get(description.kind, 0) + 1
    assert set(kinds) == {"plain", "size", "position", "superlative", "relation"}
    assert min(kinds.values()) > SCENES / 2


def test_the_independent_reading_notices_ambiguity() -> None:
    scene, _ = split_scene(11, "test", 0)
    assert len(understood("the object", scene)) == len(scene.objects)


def test_sentences_fit_the_word_length() -> None:
    words = [
        len(description.text.split())
        for scene, rng in scenes()
        for target in range(len(scene.objects))
        for description in describe(scene, target, rng)
    ]
    assert max(words) + 2 <= 17  # every word is one token of CLIP's; start and end


def row(*places: float, sizes: tuple[float, ...] = ()) -> Scene:
    """Red circles on a line, at fractions of a 100 x 100 picture."""
    diameters = sizes or (20.0,) * len(places)
    objects = tuple(
        SceneObject(Shape.CIRCLE, Colour.RED, Size.MEDIUM, 100 * x, 50.0, diameter, 0.0)
        for x, diameter in zip(places, diameters, strict=True)
    )
    return Scene(100, 100, objects, 0)


CIRCLE = Phrase(None, None, Shape.CIRCLE)


@pytest.mark.parametrize(
    ("scene", "expression", "meant"),
    [
        (row(0.2, 0.8), Expression(CIRCLE), None),
        (row(0.2), Expression(CIRCLE), 0),
        (row(0.2, 0.8), Expression(CIRCLE, Position.LEFT), 0),
        (row(0.2, 0.45), Expression(CIRCLE, Position.LEFT), None),  # the second is doubtful
        (row(0.5, 0.9), Expression(CIRCLE, Position.MIDDLE), 0),
        (row(0.2, 0.8), Expression(CIRCLE, Superlative.RIGHTMOST), 1),
        (row(0.2, 0.25), Expression(CIRCLE, Superlative.RIGHTMOST), None),  # too close to call
        (row(0.2), Expression(CIRCLE, Superlative.RIGHTMOST), None),  # of one, no superlative
        (row(0.2, 0.8, sizes=(20, 30)), Expression(CIRCLE, Superlative.LARGEST), 1),
        (row(0.2, 0.8, sizes=(20, 21)), Expression(CIRCLE, Superlative.LARGEST), None),
        (row(0.2, 0.8), Expression(CIRCLE, Relation.LEFT, CIRCLE), None),  # the anchor is not one
    ],
)
def test_rule(scene: Scene, expression: Expression, meant: int | None) -> None:
    assert referent(expression, scene) == meant


def test_relation_excludes_its_anchor_and_keeps_a_margin() -> None:
    square = SceneObject(Shape.SQUARE, Colour.BLUE, Size.MEDIUM, 50.0, 50.0, 20.0, 0.0)
    anchor = Phrase(None, Colour.BLUE, None)
    expression = Expression(CIRCLE, Relation.LEFT, anchor)
    clear, doubtful = row(0.2, 0.8), row(0.2, 0.42)
    assert referent(expression, Scene(100, 100, (*clear.objects, square), 0)) == 0
    assert referent(expression, Scene(100, 100, (*doubtful.objects, square), 0)) is None


def test_same_seed_same_scene_and_splits_differ() -> None:
    def layout(split: str, index: int) -> Scene:
        return draw_scene(scene_rng(3, split, index), width=160, height=120)

    assert layout("train", 5) == layout("train", 5)
    assert np.array_equal(render(layout("train", 5)).image, render(layout("train", 5)).image)
    drawn = [layout(split, index) for split in ("train", "val") for index in range(50)]
    assert len(set(drawn)) == len(drawn)


def test_drawing_shows_every_object_inside_the_picture() -> None:
    for scene, _ in scenes()[:40]:
        drawing = render(scene)
        assert drawing.image.shape == (scene.height, scene.width, 3)
        assert drawing.image.dtype == np.uint8
        assert drawing.masks.sum(axis=0).max() == 1  # what is covered belongs to the upper object
        for item, mask in zip(scene.objects, drawing.masks, strict=True):
            alone = render(Scene(scene.width, scene.height, (item,), 0)).masks[0]
            assert mask.sum() >= 0.6 * alone.sum()
            # Nothing is cut off by the border: the picture's frame is free.
            assert not np.concatenate([alone[0], alone[-1], alone[:, 0], alone[:, -1]]).any()


def test_a_drawn_circle_has_its_area_and_colour() -> None:
    scene = Scene(
        200, 150, (SceneObject(Shape.CIRCLE, Colour.RED, Size.LARGE, 90.0, 70.0, 60.0, 0.0),), 1
    )
    drawing = render(scene)
    # 1%: a circle of 60 pixels drawn with 64 corners, counted in whole pixels.
    assert drawing.masks[0].sum() == pytest.approx(np.pi * 30**2, rel=0.01)
    y, x = np.nonzero(drawing.masks[0])
    assert (x.mean() + 0.5, y.mean() + 0.5) == pytest.approx((90, 70), abs=0.3)
    red, green, blue = drawing.image[70, 90].astype(int)
    assert red > 150
    assert max(green, blue) < 80


def test_refused() -> None:
    rng = scene_rng(0, "x", 0)
    with pytest.raises(InputError, match="too small"):
        draw_scene(rng, width=40, height=200)
    with pytest.raises(InputError, match="count"):
        draw_scene(rng, width=200, height=200, count=9)
