"""What the model is fed: pictures, tokens and targets, and which draws make a batch."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_deploy.errors import DataError, ImageError
from cris_deploy.image import decode, letterbox, normalise
from cris_deploy.mask import mask_from_logits
from cris_train.data.dataset import THRESHOLD, ReferData, TargetSampling, mask_target
from cris_train.data.refer import read_split
from cris_train.data.scenes_to_refer import write_scenes
from cris_train.model import CrisConfig

CONFIG = CrisConfig.tiny()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, {"train": 10}, seed=2)
    return out


@pytest.fixture(scope="module")
def data(folder: Path) -> ReferData:
    return ReferData(read_split(folder, "train"), CONFIG)


def test_batch_shapes_and_ranges(data: ReferData) -> None:
    batches = list(data.batches(4, 3, np.random.default_rng(0)))
    assert len(batches) == len(data) // 4
    batch = batches[0]
    assert batch.image.shape == (4, 3, 64, 64)
    assert batch.tokens.shape == (12, 17)
    assert batch.target.shape == (12, 1, 16, 16)
    assert str(batch.image.dtype) == str(batch.target.dtype) == "torch.float32"
    assert str(batch.tokens.dtype) == "torch.int64"
    assert batch.target.min() >= 0
    assert batch.target.max() <= 1
    assert (batch.target.amax(dim=(1, 2, 3)) > 0.5).all()  # every object is in its target


def test_pictures_are_the_deployed_ones(data: ReferData, folder: Path) -> None:
    image = data.images[0]
    square = letterbox(decode(image.path), 64)
    assert np.array_equal(data.square(0), square)
    batch = next(iter(data.batches(len(data), 1, np.random.default_rng(0))))
    assert any(np.array_equal(picture, normalise(square)) for picture in batch.image.numpy())


def test_same_generator_same_batches(data: ReferData) -> None:
    first, again, other = (
        next(iter(data.batches(4, 3, np.random.default_rng(seed)))) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.tokens, again.tokens)
    assert not np.array_equal(first.tokens, other.tokens)


def test_a_picture_comes_with_its_own_expressions(data: ReferData) -> None:
    known = {
        data.square(index).tobytes(): {
            data.tokens(said).tobytes()
            for item in data.images[index].objects
            for said in item.expressions
        }
        for index in range(len(data))
    }
    pictures = {normalise(data.square(i)).tobytes(): data.square(i).tobytes() for i in range(10)}
    for batch in data.batches(2, 3, np.random.default_rng(3)):
        for row, tokens in enumerate(batch.tokens.numpy()):
            square = pictures[batch.image[row // 3].numpy().tobytes()]
            assert tokens.tobytes() in known[square]


def test_tokens_of_clip_cut_as_the_reference_does(data: ReferData) -> None:
    short = data.tokens("The red  circle")
    assert short[:5].tolist() == [49406, 518, 736, 7117, 49407]
    assert not short[5:].any()
    long = data.tokens("red " * 40)
    assert long.shape == (17,)
    assert long[0] == 49406
    assert long[-1] == 49407
    assert (long[1:-1] == 736).all()


def test_short_expressions_only(folder: Path) -> None:
    split = read_split(folder, "train")
    short = ReferData(split, CONFIG, max_words=3)
    said = [text for image in short.images for item in image.objects for text in item.expressions]
    everything = [text for image in split for item in image.objects for text in item.expressions]
    assert sorted(said) == sorted(text for text in everything if len(text.split()) <= 3)
    assert 0 < len(said) < len(everything)
    for image in short.images:
        for item in image.objects:
            assert len(item.expressions) == len(item.sentence_ids)
    with pytest.raises(DataError, match="max_words is 0"):
        ReferData(split, CONFIG, max_words=0)


@pytest.mark.parametrize(
    ("sampling", "least"),
    # A disc of 60 pixels, input of 160: the reference's target lands up to 3 pixels off (IoU 0.70),
    # the aligned one within a fraction of a pixel.
    [(TargetSampling.NEAREST, 0.65), (TargetSampling.COVERAGE, 0.95)],
)
def test_a_perfect_prediction_gives_the_mask_back(sampling: TargetSampling, least: float) -> None:
    mask = np.zeros((240, 320), np.uint8)
    cv2.circle(mask, (230, 150), 30, 1, -1)
    truth = mask.astype(bool)
    target = np.clip(mask_target(truth, 160, sampling), 1e-4, 1 - 1e-4)
    logits = np.log(target / (1 - target)).astype(np.float32)
    found = mask_from_logits(logits, 240, 320, 160, THRESHOLD)
    assert (found & truth).sum() / (found | truth).sum() > least


def test_nearest_takes_every_fourth_pixel() -> None:
    mask = np.zeros((64, 64), bool)
    mask[8:17, 20:33] = True
    assert np.array_equal(mask_target(mask, 64, TargetSampling.NEAREST) > 0, mask[::4, ::4])


def test_pictures_absent_or_of_another_size(folder: Path, tmp_path: Path) -> None:
    split = read_split(folder, "train", images=tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        ReferData(split, CONFIG).square(0)
    cv2.imwrite(str(split[0].path), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(DataError, match=r"30x20, instances\.json says"):
        ReferData(split, CONFIG).square(0)
