"""What the model is fed: pictures, tokens and targets, and which draws make a batch."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cris_deploy.errors import DataError, ImageError
from cris_deploy.pixels.image import Letterbox, decode, letterbox, normalise
from cris_deploy.pixels.mask import mask_from_logits
from cris_train.data.batch import pack, unpack_on_device
from cris_train.data.dataset import ReferData
from cris_train.data.refer import read_split
from cris_train.data.target import THRESHOLD, TargetSampling, mask_target
from cris_train.model import CrisConfig
from cris_train.synthetic.refer_files import write_scenes

CONFIG = CrisConfig.tiny()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, {"train": 10}, seed=2)
    return out


@pytest.fixture(scope="module")
def data(folder: Path) -> ReferData:
    return ReferData(read_split(folder, "train"), CONFIG)


def test_a_sample_is_a_picture_with_its_expressions(data: ReferData) -> None:
    image = data.images[0]
    sample = data.sample(0, [(1, 0), (0, 1), (1, 0)])
    first, second = image.objects[1], image.objects[0]
    said = [first.expressions[0], second.expressions[1], first.expressions[0]]
    assert np.array_equal(sample.square, letterbox(decode(image.path), 64))
    assert np.array_equal(sample.tokens, [data.tokens(text) for text in said])
    wanted = mask_target(image.mask(second), 64, TargetSampling.COVERAGE)
    # Kept in steps of 1/255, so half a step off at most.
    assert np.abs(sample.target[1] / 255 - wanted).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(sample.target[0], sample.target[2])
    assert (sample.target.max(axis=(1, 2)) > 127).all()
    assert sample.name == image.path.name


def test_a_batch_is_normalised_as_in_deployment(data: ReferData) -> None:
    samples = [data.sample(index, [(0, 0), (0, 0)]) for index in range(3)]
    batch = pack(samples).unpack()
    assert batch.image.shape == (3, 3, 64, 64)
    assert batch.tokens.shape == (6, 17)
    assert batch.target.shape == (6, 1, 16, 16)
    assert str(batch.image.dtype) == str(batch.target.dtype) == "torch.float32"
    assert str(batch.tokens.dtype) == "torch.int64"
    assert batch.target.max() <= 1
    assert batch.names == tuple(image.path.name for image in data.images[:3])
    for picture, image in zip(batch.image.numpy(), data.images, strict=False):
        assert np.array_equal(picture, normalise(letterbox(decode(image.path), 64)))


def test_the_way_to_a_device_gives_the_same_floats(data: ReferData) -> None:
    packed = pack([data.sample(index, [(0, 0)]) for index in range(2)])
    here = packed.unpack()
    there = unpack_on_device(packed, torch.device("cpu"))
    assert torch.equal(here.image, there.image)
    assert torch.equal(here.target, there.target)
    assert there.image.is_contiguous(memory_format=torch.channels_last)


def test_without_a_cache_every_read_is_fresh(folder: Path) -> None:
    split = read_split(folder, "train")
    for cache in (True, False):
        kept = ReferData(split, CONFIG, cache=cache)
        first, again = kept.square(0), kept.square(0)
        assert (first is again) is cache
        assert np.array_equal(first, again)


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


@pytest.mark.parametrize("size", [64, 160, 416])
def test_nearest_takes_every_fourth_pixel_of_the_letterbox(size: int) -> None:
    rng = np.random.default_rng(size)
    for height, width in ((480, 640), (333, 500), (61, 45), (97, 416)):
        mask = rng.random((height, width)) < 0.5
        square = cv2.warpAffine(
            mask.astype(np.float32), Letterbox(height, width, size).matrix, (size, size)
        )
        target = mask_target(mask, size, TargetSampling.NEAREST)
        assert np.array_equal(target > 0, square[::4, ::4] > 0.5)


def test_pictures_absent_or_of_another_size(folder: Path, tmp_path: Path) -> None:
    split = read_split(folder, "train", images=tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        ReferData(split, CONFIG).square(0)
    cv2.imwrite(str(split[0].path), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(DataError, match=r"30x20, its masks are"):
        ReferData(split, CONFIG).square(0)
