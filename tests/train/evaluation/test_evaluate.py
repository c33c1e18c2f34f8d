"""Evaluation: every expression once, broken data named, the right ones shown, segmenters agree."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cris_deploy.engine import Engine
from cris_deploy.errors import CrisError, DataError, ExpressionError, ImageError, InputError
from cris_deploy.pixels.image import letterbox, normalise
from cris_deploy.pixels.mask import mask_from_logits, overlap
from cris_train.data.dataset import ReferData, read_picture
from cris_train.data.refer import ReferImage, ReferObject, read_split
from cris_train.evaluation.evaluate import Outcome, evaluate
from cris_train.evaluation.gallery import Gallery
from cris_train.evaluation.segmenters import CHUNK, EngineSegmenter, TorchSegmenter
from cris_train.model import Cris, CrisConfig
from cris_train.synthetic.refer_files import write_scenes
from tests.helpers.models import randomised

CONFIG = CrisConfig.tiny()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReferImage, ...]:
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, {"val": 4}, seed=7)
    return read_split(out, "val")


@pytest.fixture(scope="module")
def model() -> Cris:
    torch.manual_seed(0)
    return randomised(Cris(CONFIG))


class Shares:
    """Finds the upper `share` of every object it knows by what was said."""

    def __init__(self, images: Sequence[ReferImage], shares: Sequence[float] = (1.0,)) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self._shares = shares
        self._known = {image.path: image for image in images}

    def __call__(self, image: ReferImage, expressions: Sequence[str]) -> list[np.ndarray]:
        self.asked.append((image.path.name, tuple(expressions)))
        read_picture(image)
        items = [item for item in image.objects for _ in item.expressions]
        return [
            upper(image.mask(item), self._shares[index % len(self._shares)])
            for index, item in enumerate(items)
        ]


def upper(mask: np.ndarray, share: float) -> np.ndarray:
    """The first `share` of a mask's pixels."""
    places = np.flatnonzero(mask)[: round(share * mask.sum())]
    part = np.zeros(mask.size, bool)
    part[places] = True
    return part.reshape(mask.shape)


def said(image: ReferImage) -> tuple[str, ...]:
    return tuple(text for item in image.objects for text in item.expressions)


def test_every_expression_of_every_object_once(pictures: tuple[ReferImage, ...]) -> None:
    segmenter, seen, ticks = Shares(pictures, (1.0, 0.5)), [], []
    metrics = evaluate(segmenter, pictures, observe=seen.append, tick=lambda: ticks.append(1))
    assert segmenter.asked == [(image.path.name, said(image)) for image in pictures]
    assert [o.expression for o in seen] == [text for image in pictures for text in said(image)]
    assert len(ticks) == len(pictures)
    numbers = [o.sentence_id for o in seen]
    assert len(set(numbers)) == len(numbers) == len(metrics.ious)
    assert metrics.ious == [o.iou for o in seen]
    for outcome in seen:
        assert outcome.item in outcome.image.objects
        assert outcome.expression in outcome.item.expressions
        assert np.array_equal(outcome.truth, outcome.image.mask(outcome.item))
        assert outcome.iou == overlap(outcome.mask, outcome.truth).iou
    # Half of an odd number of pixels is rounded.
    assert seen[0].iou == 1.0
    assert seen[1].iou == pytest.approx(0.5, abs=1 / seen[1].truth.sum())


def without_words(image: ReferImage) -> ReferImage:
    first, *others = image.objects
    mute = replace(first, expressions=(" \t", *first.expressions[1:]))
    return replace(image, objects=(mute, *others))


def with_broken_mask(image: ReferImage) -> ReferImage:
    first, *others = image.objects
    return replace(image, objects=(replace(first, segmentation={"counts": 3}), *others))


def test_broken_data_is_an_error_or_named(pictures: tuple[ReferImage, ...], tmp_path: Path) -> None:
    absent = replace(pictures[0], path=tmp_path / "absent.jpg")
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((20, 30, 3), np.uint8))
    small = replace(pictures[1], path=tmp_path / "small.png")
    mute, maskless = without_words(pictures[2]), with_broken_mask(pictures[3])
    for image, kind in (
        (absent, ImageError),
        (small, DataError),
        (mute, ExpressionError),
        (maskless, DataError),
    ):
        with pytest.raises(kind):
            evaluate(Shares(pictures), [image])
    found: list[tuple[str, CrisError]] = []
    seen: list[Outcome] = []
    evaluate(
        lambda image, texts: [read_picture(image)[:, :, 0] > 300 for _ in texts],
        [absent, small, mute, maskless],
        skip=lambda image, error: found.append((image.path.name, error)),
        observe=seen.append,
    )
    assert [type(error) for _, error in found] == [
        ImageError,
        DataError,
        ExpressionError,
        DataError,
    ]
    assert "absent.jpg" in str(found[0][1])
    assert "30x20" in str(found[1][1])
    assert "no words" in str(found[2][1])
    # What is left out is no more than what is broken.
    first = maskless.objects[0]
    assert len(seen) == len(said(mute)) - 1 + len(said(maskless)) - len(first.expressions)


def test_segmenting_is_letterbox_model_and_mask_step(
    model: Cris, pictures: tuple[ReferImage, ...]
) -> None:
    image = pictures[0]
    texts = (list(said(image)) * 9)[: CHUNK + 3]  # more than go in one run
    data = ReferData(pictures, CONFIG)
    square = normalise(letterbox(read_picture(image), CONFIG.input_size))
    with torch.inference_mode():
        logits = model(
            torch.from_numpy(square)[None],
            torch.from_numpy(np.stack([data.tokens(text) for text in texts])),
        )[:, 0].numpy()
    threshold = 0.5
    segmenter = TorchSegmenter(model, threshold=threshold)
    found, scores = segmenter(image, texts), segmenter.scores(image, texts)
    assert scores == pytest.approx(1 / (1 + np.exp(-logits.max(axis=(1, 2)))), rel=1e-5)
    assert sum(0.1 < mask.mean() < 0.9 for mask in found) >= 4  # neither nothing nor everything
    assert len(found) == len(texts)
    for mask, low in zip(found, logits, strict=True):
        expected = mask_from_logits(low, image.height, image.width, CONFIG.input_size, threshold)
        assert mask.shape == (image.height, image.width)
        # Rows of a batch differ in the last bits from those of another batch; a pixel may turn.
        assert overlap(mask, expected).iou > 0.999


def test_mixed_precision_is_used(model: Cris, pictures: tuple[ReferImage, ...]) -> None:
    kinds = []
    handle = model.neck.register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    for autocast in (None, torch.bfloat16):
        TorchSegmenter(model, threshold=0.5, autocast=autocast)(pictures[0], ["a cat"])
    handle.remove()
    assert kinds == [torch.float32, torch.bfloat16]


def test_an_engine_gives_its_own_masks(tiny_bundle: Path, pictures: tuple[ReferImage, ...]) -> None:
    image, texts = pictures[1], ["a cat", "red"]
    with Engine(tiny_bundle, threads=1) as engine:
        expected = engine.segment(image.path, texts)
        assert EngineSegmenter(engine).scores(image, texts) == [r.score for r in expected]
        for threshold in (None, 0.35):  # the bundle's own
            found = EngineSegmenter(engine, threshold=threshold)(image, texts)
            for mask, result in zip(found, expected, strict=True):
                assert np.array_equal(mask, result.mask)
        lower, higher = (EngineSegmenter(engine, threshold=at)(image, texts) for at in (0.1, 0.9))
        for mask, low, high in zip(expected, lower, higher, strict=True):
            assert low.sum() > mask.area > high.sum()
        with pytest.raises(DataError, match=f"{image.width}x{image.height}"):
            EngineSegmenter(engine)(replace(image, width=image.width + 1), texts)


def outcome(picture: int, iou: float, sentence: int = 0) -> Outcome:
    item = ReferObject(picture, None, ("it",), (sentence,))
    empty = np.zeros((2, 2), bool)
    return Outcome(
        ReferImage(Path(f"{picture}.png"), 2, 2, (item,)), item, "it", sentence, empty, empty, iou
    )


def test_gallery_keeps_best_and_worst_of_different_pictures() -> None:
    gallery = Gallery(size=3)
    for picture in range(20):
        for turn in range(3):
            gallery.add(outcome(picture, (picture * 7 % 20) / 20 + turn / 1000))
    assert [o.iou for o in gallery.best] == [0.952, 0.902, 0.852]
    assert [o.iou for o in gallery.worst] == [0.0, 0.05, 0.1]
    assert len({o.image.path for o in gallery.best}) == 3


def test_gallery_draws_fairly_and_by_seed() -> None:
    def drawn(seed: int) -> list[int]:
        gallery = Gallery(size=4, seed=seed)
        for number in range(40):
            gallery.add(outcome(number, 0.5, number))
        return [o.sentence_id for o in gallery.drawn]

    assert drawn(1) == drawn(1)
    counts = np.bincount([n for seed in range(500) for n in drawn(seed)], minlength=40)
    # 50 of each are expected, with a standard deviation of 6.7.
    assert counts.sum() == 2000
    assert np.abs(counts - 50).max() < 5 * 6.7


def test_gallery_has_the_first_pictures_with_an_expression_for_each_object() -> None:
    gallery = Gallery(size=2)
    for picture in range(3):
        one = outcome(picture, 0.5)
        for ref_id in range(5):
            for sentence in range(2):
                item = replace(one.item, ref_id=ref_id)
                gallery.add(replace(one, item=item, sentence_id=10 * ref_id + sentence))
    assert [[o.sentence_id for o in said] for said in gallery.scenes] == [[0, 10, 20]] * 2
    assert [said[0].image.path.name for said in gallery.scenes] == ["0.png", "1.png"]


def test_gallery_of_nothing(tmp_path: Path) -> None:
    assert Gallery().write(tmp_path / "none", "") == ()
    assert not (tmp_path / "none").exists()
    with pytest.raises(InputError, match="size is 0"):
        Gallery(size=0)
