"""Augmentation: picture, mask and words change together, and again in the same way."""

from pathlib import Path

import numpy as np
import pytest

from cris_deploy.errors import InputError
from cris_train.data.augment import Augment, Augmented, augmented
from cris_train.data.dataset import ReferData
from cris_train.data.feed import Draw, FeedPlan
from cris_train.data.loader import Feed
from cris_train.data.splits import open_split
from cris_train.data.target import TargetSampling, mask_target
from cris_train.model import CrisConfig
from cris_train.synthetic.refer_files import write_scenes

SIZE = 64
CHANGES = Augment(scale=(0.8, 1.25), crop=1.0, colour=0.2, flip=0.5)


def scene(x: int = 24, y: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """A grey picture of 96 x 64 with a red square of 12 pixels, and its mask."""
    picture = np.full((64, 96, 3), 120, np.uint8)
    mask = np.zeros((64, 96), bool)
    mask[y : y + 12, x : x + 12] = True
    picture[mask] = (220, 20, 20)
    return picture, mask


def change(augment: Augment, seed: int, said: str = "the red thing", **spot: int) -> Augmented:
    picture, mask = scene(**spot)
    return augmented(
        picture,
        [mask],
        [said],
        size=SIZE,
        sampling=TargetSampling.COVERAGE,
        augment=augment,
        rng=np.random.default_rng(seed),
    )


def centre(found: np.ndarray) -> tuple[float, float]:
    """(x, y) of what is set, as shares of the square."""
    y, x = np.nonzero(found)
    return (x.mean() + 0.5) / found.shape[1], (y.mean() + 0.5) / found.shape[0]


def red(square: np.ndarray) -> np.ndarray:
    return (square[:, :, 0].astype(int) - square[:, :, 1]) > 100


def test_nothing_asked_is_the_letterbox(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", {"train": 2}, seed=1)
    images = open_split(tmp_path / "scenes", "train")
    plain = ReferData(images, CrisConfig.tiny())
    unchanged = ReferData(images, CrisConfig.tiny(), cache=False, augment=Augment())
    one = plain.sample(0, [(0, 0), (1, 0)])
    other = unchanged.sample(0, [(0, 0), (1, 0)], np.random.default_rng(0))
    for name in ("square", "tokens", "target"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("seed", range(12))
def test_the_mask_stays_on_its_object(seed: int) -> None:
    found = change(CHANGES, seed)
    assert found.square.shape == (SIZE, SIZE, 3)
    # A target's cell is 4 pixels of 64: half of one is 0.03.
    assert centre(found.targets[0] > 0.35) == pytest.approx(centre(red(found.square)), abs=0.03)


def test_a_mirror_swaps_sides_in_picture_mask_and_words() -> None:
    always = Augment(flip=1.0)
    found = change(always, 0, "the red thing on the left", x=4)
    assert found.said == ("the red thing on the right",)
    assert centre(red(found.square))[0] > 0.8
    assert np.array_equal(
        found.targets[0],
        mask_target(scene(x=4)[1][:, ::-1], SIZE, TargetSampling.COVERAGE),
    )
    doubtful = change(always, 0, "the second thing", x=4)
    assert doubtful.said == ("the second thing",)
    assert centre(red(doubtful.square))[0] < 0.2


def test_one_sentence_that_cannot_be_mirrored_keeps_the_picture() -> None:
    picture, mask = scene(x=4)
    found = augmented(
        picture,
        [mask, mask],
        ["the left thing", "number 7"],
        size=SIZE,
        sampling=TargetSampling.COVERAGE,
        augment=Augment(flip=1.0),
        rng=np.random.default_rng(0),
    )
    assert found.said == ("the left thing", "number 7")
    assert centre(red(found.square))[0] < 0.2


def test_what_says_where_is_not_moved_and_what_is_asked_for_stays_inside() -> None:
    small = Augment(scale=(0.5, 0.5), crop=1.0)
    moved = {centre(red(change(small, seed).square)) for seed in range(5)}
    assert len(moved) == 5
    still = {centre(red(change(small, seed, "the left thing").square)) for seed in range(5)}
    assert len(still) == 1
    large = Augment(scale=(2.0, 2.0), crop=1.0)
    for seed in range(8):
        count = red(change(large, seed, x=0, y=0).square).sum()
        assert count >= red(change(Augment(), 0, x=0, y=0).square).sum() * 0.9


def test_light_changes_and_hue_does_not() -> None:
    seen = set()
    for seed in range(6):
        square = change(Augment(colour=0.3), seed).square
        inside = square[red(square)].astype(int)
        seen.add(tuple(inside.mean(axis=0).round().tolist()))
        assert (inside[:, 0] > inside[:, 1] + 80).all()
        assert np.abs(inside[:, 1] - inside[:, 2]).max() <= 2  # red had as much green as blue
    assert len(seen) == 6


def test_draws_are_of_seed_epoch_and_position(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", {"train": 6}, seed=2)
    images = open_split(tmp_path / "scenes", "train")

    def batches(epoch: int, *, start: int = 0, rank: int = 0, world: int = 1, workers: int = 0):
        data = ReferData(images, CrisConfig.tiny(), cache=False, augment=CHANGES)
        plan = FeedPlan(Draw.IMAGE, 2, 3, 5, workers, False)
        return list(Feed(data, plan, rank=rank, world=world).epoch(epoch, start))

    whole = batches(3)
    for other in (batches(3, start=1)[-1], batches(3, workers=1)[-1]):
        assert (other.image == whole[-1].image).all()
        assert (other.tokens == whole[-1].tokens).all()
        assert (other.target == whole[-1].target).all()
    assert (batches(3, rank=1, world=2)[0].image[0] == whole[0].image[1]).all()
    assert not (batches(4)[0].image == whole[0].image).all()


def test_refused() -> None:
    with pytest.raises(InputError, match=r"scale is \[1.2, 0.8\]: give the smaller factor first"):
        Augment(scale=(1.2, 0.8))
