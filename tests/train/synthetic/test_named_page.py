"""The page scene of named things: small, of known names, and its examples mean one thing each."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_train.synthetic.named.facts import look
from cris_train.synthetic.named.names import things
from cris_train.synthetic.named.pictures import Pictures
from cris_train.synthetic.named.render import render
from cris_train.synthetic.named.scenes import Layout, Placed
from tests.helpers.named_pictures import write_pictures
from tests.helpers.named_reading import Reader, vocabulary

PAGE = Path(__file__).parents[3] / "train" / "demo" / "named-page"
SCENE = json.loads((PAGE / "scene.json").read_text(encoding="utf-8"))
MEANT = (5, 3, 2, 0, 5, 5)  # which arranged thing each example means


def test_it_is_small_and_every_name_has_its_picture() -> None:
    files = {thing["name"]: thing["file"] for thing in SCENE["things"]}
    assert len(files) == len(SCENE["things"]) == 40
    assert files.keys() <= {thing.name for thing in things()}
    assert {item["name"] for item in SCENE["arranged"]} <= files.keys()
    for file in files.values():
        assert cv2.imread(str(PAGE / file), cv2.IMREAD_UNCHANGED).shape[2] == 4
    for file in SCENE["backgrounds"]:
        assert cv2.imread(str(PAGE / file)).shape == (480, 640, 3)
    shown = {*files.values(), *SCENE["backgrounds"], "scene.json"}
    assert {path.name for path in PAGE.iterdir()} == shown
    assert sum(path.stat().st_size for path in PAGE.iterdir()) < 600_000


@pytest.mark.parametrize("background", SCENE["backgrounds"])
def test_every_example_means_one_thing(tmp_path: Path, background: str) -> None:
    cache = write_pictures(tmp_path)
    names = [thing.name for thing in things()]
    files = {thing["name"]: thing["file"] for thing in SCENE["things"]}
    placed = []
    for item in SCENE["arranged"]:
        code = Path(files[item["name"]]).stem
        (cache / "cutouts" / f"{code}.webp").write_bytes((PAGE / f"{code}.webp").read_bytes())
        placed.append(
            Placed(
                thing=names.index(item["name"]),
                code=code,
                x=item["x"] * 640,
                y=item["y"] * 480,
                diameter=item["size"] * 480,
                tilt=item["angle"],
                mirrored=False,
                paint=None,
            )
        )
    layout = Layout(640, 480, tuple(placed))
    behind = np.asarray(cv2.imread(str(PAGE / background))[..., ::-1], np.uint8)
    drawing = render(np.random.default_rng(0), layout, behind, Pictures(cache))
    facts = look(layout, drawing, things(), frozenset())
    reader = Reader(facts, drawing.image, drawing.masks, vocabulary())
    assert len(SCENE["examples"]) == len(MEANT)
    for example, meant in zip(SCENE["examples"], MEANT, strict=True):
        assert reader.understood(example) == [meant], example
