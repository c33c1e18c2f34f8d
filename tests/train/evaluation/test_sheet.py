"""Picture sheets: the masks are where they should be, and every text has its place."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_deploy.errors import InputError
from cris_deploy.results.overlay import colour
from cris_train.evaluation.sheet import (
    MASK,
    PAPER,
    TRUTH,
    Scene,
    Tile,
    picture_sheet,
    scene_sheet,
    write_sheet,
)

GREY = 100
TITLE, GAP = 44, 12  # above the tiles, and between them


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((120, 160), bool)
    mask[top:bottom, left:right] = True
    return mask


def tile(**changes: object) -> Tile:
    """A grey picture of 160 x 120; the mask is on the left, the truth on the right of it."""
    plain = Tile(
        picture=np.full((120, 160, 3), GREY, np.uint8),
        expression="the left one",
        truth=box(40, 80, 90, 140),
        mask=box(20, 100, 10, 60),
        iou=0.25,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def drawn(sheet: np.ndarray, width: int = 160, height: int = 120) -> np.ndarray:
    """The first tile's picture."""
    return sheet[TITLE : TITLE + height, GAP : GAP + width]


def is_colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(pixels.astype(int) - colour) <= 2).all(axis=-1)


def test_the_mask_is_tinted_and_nothing_else() -> None:
    picture = drawn(picture_sheet([tile()], tile_width=160))
    tinted = np.rint((np.array(MASK) + GREY) / 2)
    # A contour covers up to two pixels on both sides of the edge.
    assert is_colour(picture[23:97, 13:57], tuple(tinted)).all()
    outside = np.ones((120, 160), bool)
    outside[17:103, 7:63] = outside[37:83, 87:143] = False
    assert (picture[outside] == GREY).all()


def test_the_truth_is_outlined_and_not_filled() -> None:
    picture = drawn(picture_sheet([tile()], tile_width=160))
    lines = is_colour(picture, TRUTH)
    rows, columns = np.nonzero(lines)
    assert rows.min() in (39, 40)
    assert rows.max() in (79, 80)
    assert columns.min() in (89, 90)
    assert columns.max() in (139, 140)
    assert (picture[44:76, 94:136] == GREY).all()


def test_a_scaled_picture_keeps_its_places() -> None:
    large = tile(
        picture=np.full((480, 640, 3), GREY, np.uint8),
        truth=cv2.resize(tile().truth.astype(np.uint8), (640, 480)).astype(bool),
        mask=cv2.resize(tile().mask.astype(np.uint8), (640, 480)).astype(bool),
    )
    picture = drawn(picture_sheet([large], tile_width=160))
    assert is_colour(picture[24:96, 14:56], tuple(np.rint((np.array(MASK) + GREY) / 2))).all()
    assert is_colour(picture[60, 86:94], TRUTH).any()


def test_portraits_fit_and_the_rest_is_paper() -> None:
    portrait = tile(
        picture=np.full((160, 80, 3), GREY, np.uint8),
        truth=np.zeros((160, 80), bool),
        mask=np.zeros((160, 80), bool),
    )
    picture = drawn(picture_sheet([portrait], tile_width=160), height=160)
    assert (picture[:, :80] == GREY).all()
    assert (picture[:, 80:] == PAPER).all()


def test_rows_and_columns() -> None:
    sheet = picture_sheet([tile() for _ in range(5)], columns=3, tile_width=160)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == 3 * 160 + 4 * GAP
    single = picture_sheet([tile()], columns=3, tile_width=160)
    assert single.shape[1] == 160 + 2 * GAP  # no empty columns
    assert sheet.shape[0] - TITLE == 2 * (single.shape[0] - TITLE)
    last = sheet[-(single.shape[0] - TITLE) :, -(160 + GAP) :]
    assert (last == PAPER).all()  # five tiles leave the sixth place empty


def test_words_and_number_are_written() -> None:
    def caption(**changes: object) -> np.ndarray:
        return picture_sheet([tile(**changes)], tile_width=160)[TITLE + 120 :]

    plain = caption()
    assert (plain < 128).any()
    assert not np.array_equal(plain, caption(expression="the right one"))
    assert not np.array_equal(plain, caption(iou=0.26))
    assert np.array_equal(plain, caption(expression="  the left\none "))
    # Too long for two lines, or without a space: cut inside its own tile.
    for text in ("word " * 200, "x" * 4000):
        long = caption(expression=text)
        assert long.shape == plain.shape
        assert (long[:, :GAP] == PAPER).all()
        assert (long[:, -GAP:] == PAPER).all()


def test_a_title_is_written() -> None:
    wide = [tile() for _ in range(3)]
    plain, titled = picture_sheet(wide), picture_sheet(wide, title="worst of val")
    assert plain.shape == titled.shape
    assert not np.array_equal(plain[:TITLE], titled[:TITLE])
    assert np.array_equal(plain[TITLE:], titled[TITLE:])


def test_the_file_is_the_sheet(tmp_path: Path) -> None:
    sheet = picture_sheet([tile()], title="a")
    path = write_sheet(tmp_path / "new" / "sheet.png", sheet)
    assert np.array_equal(cv2.imread(str(path))[:, :, ::-1], sheet)
    assert [entry.name for entry in path.parent.iterdir()] == ["sheet.png"]


def test_a_scene_has_every_mask_in_the_colour_of_its_words(tmp_path: Path) -> None:
    found = (("the left one", tile().mask, 0.25), ("word " * 200, tile().truth, 1.0))
    sheet = scene_sheet([Scene(tile().picture, found)] * 3, columns=2, tile_width=160)
    picture, words = drawn(sheet), sheet[TITLE + 120 :]
    for index, (_, mask, _) in enumerate(found):
        rows, columns = np.nonzero(is_colour(picture, colour(index)))
        assert abs(rows.min() - np.nonzero(mask)[0].min()) <= 2
        assert abs(columns.max() - np.nonzero(mask)[1].max()) <= 2
        assert is_colour(words[:60, GAP : GAP + 160], colour(index)).sum() == 16 * 16
    assert (sheet[:, GAP + 160 : 2 * GAP + 160] == PAPER).all()  # long words were cut
    assert (sheet[-150:, -160:] == PAPER).all()  # three leave the fourth place empty
    path = write_sheet(tmp_path / "sheet.jpg", sheet)
    assert np.abs(cv2.imread(str(path))[:, :, ::-1].astype(int) - sheet).mean() < 6
    with pytest.raises(InputError, match="mask of 'it' is 160x119"):
        scene_sheet([Scene(tile().picture, (("it", tile().mask[1:], 0.5),))])


def test_unusable_tiles(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tiles is empty"):
        picture_sheet([])
    with pytest.raises(InputError, match="mask of 'the left one' is 160x119"):
        picture_sheet([tile(mask=box(0, 1, 0, 1)[1:])])
    with pytest.raises(InputError, match="truth of"):
        picture_sheet([tile(truth=box(0, 1, 0, 1)[:, 1:])])
    with pytest.raises(InputError, match="columns is 0"):
        picture_sheet([tile()], columns=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_sheet(tmp_path / "file" / "sheet.png", picture_sheet([tile()]))
