"""Named scenes: every expression means one thing in a second reading, and splits keep apart."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cris_deploy.errors import InputError
from cris_train.synthetic.named import describe as describing
from cris_train.synthetic.named.describe import Compositions, describe, held_out
from cris_train.synthetic.named.maker import NamedMaker
from cris_train.synthetic.named.sources import PHOTOGRAPHS, require
from cris_train.synthetic.named.wording import plural, with_slip
from tests.helpers.named_pictures import write_pictures
from tests.helpers.named_reading import COLOURS, Reader, vocabulary

SCENES = 120


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> NamedMaker:
    return NamedMaker(write_pictures(tmp_path_factory.mktemp("named")))


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_expression_means_exactly_its_thing(
    maker: NamedMaker, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(describing, "SLIPS", 0.0)
    words = vocabulary()
    kinds: Counter[str] = Counter()
    colours: list[str] = []
    wanted = Compositions.UNSEEN if split == "test" else Compositions.SEEN
    for index in range(SCENES):
        facts, drawing, _, rng = maker.draw(3, split, index)
        reader = Reader(facts, drawing.image, drawing.masks, words)
        for target in range(len(facts.items)):
            for said in describe(facts, target, rng, wanted):
                if reader.understood(said.text) != [target]:
                    # What colour a patterned thing has, two ways of counting pixels may tell apart.
                    assert {*COLOURS, "gray", "violet"} & {*said.text.split()}, said.text
                    colours.append(said.text)
                assert 1 <= len(said.text.split()) <= 12
                kinds[said.kind] += 1
    assert len(kinds) == 9
    assert min(kinds.values()) > SCENES / 20
    assert len(colours) < 0.005 * kinds.total(), colours


def test_the_second_reading_notices_ambiguity_and_nonsense(maker: NamedMaker) -> None:
    facts, drawing, _, _ = maker.draw(3, "train", 0)
    reader = Reader(facts, drawing.image, drawing.masks, vocabulary())
    assert len(reader.understood("the object")) == len(facts.items)
    with pytest.raises(AssertionError, match="not understood"):
        reader.understood("the gadget")


def test_training_never_says_what_only_the_unseen_split_says(maker: NamedMaker) -> None:
    def said(split: str) -> set[str]:
        scenes = (maker.make(3, split, index) for index in range(SCENES))
        return {d.text for scene in scenes for each in scene.descriptions for d in each}

    words = vocabulary()
    pairs = [(name, colour) for name in words for colour in ("red", "blue", "green", "white")]
    kept = {f"{colour} {name}" for name, colour in pairs if held_out(name, colour)}
    assert 0.15 < len(kept) / len(pairs) < 0.25
    ends = lambda texts: {t for t in texts if t.removeprefix("the ") in kept}  # noqa: E731
    assert not ends(said("train"))
    assert ends(said("test"))


def test_parts_of_photographs_that_training_never_shows(maker: NamedMaker) -> None:
    for photograph in PHOTOGRAPHS:
        seen = maker.pictures.photograph(photograph, unseen=False)
        unseen = maker.pictures.photograph(photograph, unseen=True)
        assert seen.shape[1] + unseen.shape[1] == 320
        assert np.array_equal(
            np.hstack([seen, unseen])[:, seen.shape[1] :], unseen
        )  # side by side they are the whole


def test_the_first_lesson_has_few_things_and_only_names(maker: NamedMaker) -> None:
    first = NamedMaker(maker.pictures.cache, first_lesson=True)
    words = vocabulary()
    for index in range(30):
        scene = first.make(3, "train", index)
        assert 2 <= len(scene.masks) == len(set(scene.categories)) <= 3
        for each in scene.descriptions:
            assert {said.kind for said in each} <= {"name"}
        facts, drawing, _, _ = first.draw(3, "train", index)
        reader = Reader(facts, drawing.image, drawing.masks, words)
        assert max(item.size for item in facts.items) > 0.25 * facts.short_side
        assert len(reader.all) == len(scene.masks)


def test_same_seed_same_scene_and_others_differ(maker: NamedMaker) -> None:
    first, again = maker.make(4, "train", 2), maker.make(4, "train", 2)
    assert np.array_equal(first.image, again.image)
    assert first.descriptions == again.descriptions
    assert maker.make(4, "val", 2).descriptions != first.descriptions


def test_what_is_drawn_is_visible_and_masks_do_not_overlap(maker: NamedMaker) -> None:
    for index in range(30):
        facts, drawing, layout, _ = maker.draw(5, "train", index)
        assert drawing.image.shape == (layout.height, layout.width, 3)
        assert drawing.masks.sum(axis=0).max() == 1
        assert len(drawing.masks) == len(facts.items) == len(layout.placed) >= 2
        for mask, whole, item in zip(drawing.masks, drawing.whole, facts.items, strict=True):
            assert mask.sum() >= 0.6 * whole.sum() > 0
            y, x = np.nonzero(mask)
            assert item.box == (x.min(), y.min(), x.max() + 1, y.max() + 1)


def test_a_background_that_shows_a_cat_has_no_cats_before_it(maker: NamedMaker) -> None:
    for index in range(60):
        facts, _, _, _ = maker.draw(6, "train", index)
        assert all(not item.words & facts.taken for item in facts.items)


def test_slips_change_one_word_by_one_letter_and_keep_the_first() -> None:
    rng = np.random.default_rng(0)
    text = "the second umbrella from the left"
    slips = {with_slip(text, rng) for _ in range(50)}
    assert len(slips) > 10
    for slip in slips - {text}:
        pairs = list(zip(text.split(), slip.split(), strict=True))
        changed = [(a, b) for a, b in pairs if a != b]
        assert len(changed) == 1
        before, after = changed[0]
        assert before[0] == after[0]
        assert abs(len(before) - len(after)) <= 1
        assert len(before) >= 5
    assert with_slip("the red car", rng) == "the red car"


@pytest.mark.parametrize(
    ("one", "many"),
    [("mug", "mugs"), ("fox", "foxes"), ("puppy", "puppies"), ("fire truck", "fire trucks"),
     ("mouse", "mice"), ("glasses", None), ("bread", None), ("slice of pizza", None)],
)  # fmt: skip
def test_plurals(one: str, many: str | None) -> None:
    assert plural(one) == many


def test_missing_pictures_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cris-scenes --fetch"):
        require(tmp_path)


def test_larger_pictures_show_the_same_scene(maker: NamedMaker) -> None:
    larger = NamedMaker(maker.pictures.cache, long_side=384)
    for index in range(8):
        facts, drawing, _, _ = maker.draw(3, "test", index)
        same, large, _, _ = larger.draw(3, "test", index)
        assert [item.name for item in same.items] == [item.name for item in facts.items]
        assert max(large.image.shape[:2]) == 384
        for one, other in zip(facts.items, same.items, strict=True):
            assert abs(1.5 * one.x - other.x) < 2
            assert abs(1.5 * one.size - other.size) < 2
        assert large.masks.shape == (len(same.items), *large.image.shape[:2])
        assert drawing.image.shape != large.image.shape
    with pytest.raises(InputError, match="long_side is 12: give a whole number"):
        NamedMaker(maker.pictures.cache, long_side=12)
