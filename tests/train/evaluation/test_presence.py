"""Asking for what is not there: nothing that is asked for in vain is, and thresholds count."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from cris_deploy.errors import DataError
from cris_train.data.refer import INSTANCES_FILE, ReferImage, read_split
from cris_train.evaluation.presence import ASKED, Scores, ask
from cris_train.synthetic.named.absent import AbsentNames
from cris_train.synthetic.named.maker import NamedMaker
from cris_train.synthetic.named.names import things
from cris_train.synthetic.named.sources import PHOTOGRAPHS
from cris_train.synthetic.refer_files import write_scenes
from tests.helpers.named_pictures import write_pictures

SCENES = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = write_pictures(tmp_path_factory.mktemp("cache"))
    out = tmp_path_factory.mktemp("named")
    write_scenes(out, {"val": SCENES}, 5, maker=NamedMaker(cache))
    return out


def test_nothing_that_is_asked_for_in_vain_is_there(data: Path) -> None:
    instances = json.loads((data / INSTANCES_FILE).read_text())
    kinds = {kind["id"]: kind["name"] for kind in instances["categories"]}
    words = {thing.name: thing.words for thing in things()}
    names, asked = AbsentNames(data), set()
    for image in instances["images"]:
        there = {word for photograph in PHOTOGRAPHS for word in photograph.shows}
        for each in instances["annotations"]:
            if each["image_id"] == image["id"]:
                there |= words[kinds[each["category_id"]]]
        said = names.of(image["file_name"], 20)
        assert len(set(said)) == 20
        assert all(not words[text.removeprefix("the ")] & there for text in said)
        assert said == AbsentNames(data).of(image["file_name"], 20)
        asked |= set(said)
    assert len(asked) > 100  # others of other pictures
    assert names.of("another.jpg", 20) == []


class Knows:
    """Gives what is there a high score, and what is not a low one."""

    def scores(self, image: ReferImage, expressions: Sequence[str]) -> list[float]:
        said = {text for item in image.objects for text in item.expressions}
        return [0.9 if text in said else 0.2 for text in expressions]


def test_both_sides_are_asked_and_a_threshold_tells_them_apart(data: Path) -> None:
    images = read_split(data, "val")
    found = ask(Knows(), images, AbsentNames(data))
    assert found is not None
    assert set(found.present) == {0.9}
    assert set(found.absent) == {0.2}
    assert len(found.absent) == ASKED * len(images)
    told = found.judge(found.threshold(), "val")
    assert (told.kept, told.caught, told.absent) == (1.0, 1.0, len(found.absent))


def test_a_threshold_keeps_nineteen_of_twenty_where_it_is_chosen() -> None:
    scores = Scores(present=[i / 1000 for i in range(1000)], absent=[0.02, 0.04, 0.06, 0.08])
    told = scores.judge(scores.threshold(), "val")
    assert told.kept == 0.95
    assert told.caught == 0.5
    assert told.threshold == pytest.approx(0.05, abs=1e-3)


def test_other_data_do_not_say_what_is_there(data: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "shapes", {"val": 1}, 5)
    for folder in (tmp_path, tmp_path / "shapes"):
        assert ask(Knows(), read_split(data, "val"), AbsentNames(folder)) is None
    (tmp_path / INSTANCES_FILE).write_text('{"categories": [{"supercategory": "thing"}]}')
    with pytest.raises(DataError, match="generate the scenes again"):
        AbsentNames(tmp_path)
