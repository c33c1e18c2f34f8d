"""Styles of generated scenes: another look, the same meaning."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cris_train.cli.scenes import main
from cris_train.synthetic.refer_files import ShapesMaker, split_scene, write_scenes
from cris_train.synthetic.render import render
from cris_train.synthetic.scenes import Colour
from cris_train.synthetic.styles import CHALK_PALETTE, Style


def test_a_style_changes_the_look_and_nothing_else(tmp_path: Path) -> None:
    for style in Style:
        write_scenes(tmp_path / style, {"train": 3}, seed=4, maker=ShapesMaker(style))
    refs = [(tmp_path / style / "refs(unc).p").read_bytes() for style in Style]
    assert refs[0] == refs[1]
    for number in range(3):
        scene = split_scene(4, "train", number)[0]
        plain, chalk = render(scene), render(scene, Style.CHALK)
        assert np.array_equal(plain.masks, chalk.masks)
        assert np.abs(plain.image.astype(int) - chalk.image).mean() > 20


def test_colours_of_chalk_keep_apart() -> None:
    assert set(CHALK_PALETTE) == set(Colour)
    greys = (Colour.WHITE, Colour.BLACK)
    hues = sorted(spans[0] for colour, spans in CHALK_PALETTE.items() if colour not in greys)
    assert all(after[0] - before[1] > 0.04 for before, after in pairwise(hues))


def test_a_split_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--train", "2", "--val", "0", "--style", "chalk", "--workers", "1"]
    assert main([str(tmp_path / "few"), *few]) == 0
    assert len(list((tmp_path / "few" / "images").iterdir())) == 2
    assert main([str(tmp_path / "none"), "--train", "0", "--val", "0"]) == 2
    assert "give at least 1 scene" in capsys.readouterr().err
