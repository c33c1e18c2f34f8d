"""Mirrored words: a side becomes the other, and what is doubtful is refused."""

from dataclasses import replace

import pytest

from cris_train.data.mirror import mirrored, says_where
from cris_train.synthetic.expressions import describe
from cris_train.synthetic.refer_files import split_scene
from cris_train.synthetic.scenes import Scene, SceneObject
from tests.train.synthetic.test_scenes import understood


@pytest.mark.parametrize(
    ("said", "mirror"),
    [
        ("the left cup", "the right cup"),
        ("Man on RIGHT", "man on left"),
        ("the cup left of the right plate", "the cup right of the left plate"),
        ("leftmost left-hand one, lefthand side", "rightmost right-hand one, righthand side"),
        ("bottom left corner", "bottom right corner"),
        ("topleft and lowerright", "topright and lowerleft"),
        ("girl in red", "girl in red"),
        ("bright shirt, upright", "bright shirt, upright"),
        ("brightest one", "brightest one"),
    ],
)
def test_sides_change_places(said: str, mirror: str) -> None:
    assert mirrored(said) == mirror
    assert mirrored(mirror) == said.lower()  # twice is nothing


@pytest.mark.parametrize(
    "said",
    [
        "the man right behind the bench",
        "right in front",
        "all right",
        "pizza left over",
        "the only one left",
        "second from the left",  # a machine could, but "the second man" it could not
        "the second man",
        "last horse",
        "player 23",
        "the letter b",
        "car at 3 o'clock",
        "facing west",
        "guy on l",
        "rigth guy",
        "leftish thing",
        "der Hund links",
        "le chat à côté",
    ],
)
def test_what_is_doubtful_is_refused(said: str) -> None:
    assert mirrored(said) is None


@pytest.mark.parametrize(
    ("said", "where"),
    [("left cup", True), ("cup in the corner", True), ("second man", True),
     ("red cup", False), ("bright shirt", False), ("largest red circle", False)],
)  # fmt: skip
def test_says_where(said: str, where: bool) -> None:
    assert says_where(said) is where


def test_generated_sentences_are_true_of_the_mirrored_scene() -> None:
    # By the independent reading of the generator's tests.
    changed = 0
    for number in range(30):
        scene, rng = split_scene(3, "train", number)
        mirror = replace(scene, objects=tuple(_turned(item, scene) for item in scene.objects))
        for target in range(len(scene.objects)):
            for description in describe(scene, target, rng):
                said = mirrored(description.text)
                assert said is not None
                assert understood(said, mirror) == [target]
                changed += said != description.text
    assert changed > 50


def _turned(item: SceneObject, scene: Scene) -> SceneObject:
    return replace(item, x=scene.width - item.x, tilt=-item.tilt)
