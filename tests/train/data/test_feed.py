"""The loader: one order for one seed, whatever the ranks, workers and restarts."""

import dataclasses
import multiprocessing
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cris_deploy.errors import DataError, ImageError, InputError
from cris_train.data import rows
from cris_train.data.batch import Batch, Sample
from cris_train.data.dataset import ReferData
from cris_train.data.feed import Draw, FeedPlan
from cris_train.data.loader import Feed, lost_workers_named
from cris_train.data.refer import ReferImage, read_split
from cris_train.model import CrisConfig
from cris_train.synthetic.refer_files import write_scenes

CONFIG = CrisConfig.tiny()
OBJECTS = FeedPlan(Draw.OBJECT, 4, 1, seed=7, workers=0, skip_broken=False)
IMAGES = FeedPlan(Draw.IMAGE, 4, 3, seed=7, workers=0, skip_broken=False)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReferImage, ...]:
    out = tmp_path_factory.mktemp("scenes")
    write_scenes(out, {"train": 15}, seed=3)
    return read_split(out, "train")


@pytest.fixture(scope="module")
def data(split: tuple[ReferImage, ...]) -> ReferData:
    return ReferData(split, CONFIG, cache=False)


def assert_equal(ours: Sequence[Batch], theirs: Sequence[Batch]) -> None:
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert our.names == their.names
        for name in ("image", "tokens", "target"):
            assert torch.equal(getattr(our, name), getattr(their, name)), name


def joined(parts: Sequence[Batch]) -> Batch:
    return Batch(
        torch.cat([part.image for part in parts]),
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.target for part in parts]),
        tuple(name for part in parts for name in part.names),
    )


@pytest.mark.parametrize("plan", [OBJECTS, IMAGES], ids=["object", "image"])
class TestExactness:
    def test_a_seed_is_an_order(self, data: ReferData, plan: FeedPlan) -> None:
        first = list(Feed(data, plan).epoch(2))
        feed = Feed(data, plan)
        assert len(first) == feed.steps_per_epoch
        list(feed.epoch(0))  # what was read before does not matter
        assert_equal(list(feed.epoch(2)), first)
        for other in (
            list(feed.epoch(3)),
            list(Feed(data, dataclasses.replace(plan, seed=8)).epoch(2)),
        ):
            assert [batch.names for batch in other] != [batch.names for batch in first]

    @pytest.mark.parametrize("world", [2, 4])
    def test_ranks_side_by_side_are_one_process(
        self, data: ReferData, plan: FeedPlan, world: int
    ) -> None:
        shares = [list(Feed(data, plan, rank=r, world=world).epoch(1)) for r in range(world)]
        whole = list(Feed(data, plan).epoch(1))
        assert_equal([joined(parts) for parts in zip(*shares, strict=True)], whole)

    def test_any_step_of_an_epoch_can_be_the_first(self, data: ReferData, plan: FeedPlan) -> None:
        feed = Feed(data, plan)
        whole = list(feed.epoch(1))
        for start in range(feed.steps_per_epoch + 1):
            assert_equal(list(feed.epoch(1, start)), whole[start:])

    def test_workers_change_nothing(self, data: ReferData, plan: FeedPlan) -> None:
        alone, feed = Feed(data, plan), Feed(data, dataclasses.replace(plan, workers=2))
        for epoch in range(2):
            assert_equal(list(feed.epoch(epoch)), list(alone.epoch(epoch)))
        left = feed.epoch(2)
        next(left)
        assert_equal(list(feed.epoch(3, 1)), list(alone.epoch(3, 1)))
        assert list(left) == []  # an epoch ends the one before


def test_a_worker_has_one_thread_of_opencv(split: tuple[ReferImage, ...]) -> None:
    class Counting(ReferData):
        def sample(
            self,
            index: int,
            said: Sequence[tuple[int, int]],
            rng: np.random.Generator | None = None,
        ) -> Sample:
            name = str(cv2.getNumThreads())
            return dataclasses.replace(super().sample(index, said, rng), name=name)

    data = Counting(split, CONFIG, cache=False)
    feed = Feed(data, dataclasses.replace(IMAGES, workers=1))
    # Forked with more, a process would wait for threads that it does not have.
    assert {name for batch in feed.epoch(0) for name in batch.names} == {"1"}
    assert cv2.getNumThreads() == 1


def test_rows_draw_independently(data: ReferData) -> None:
    numbers = {
        (image.path.name, data.tokens(said).tobytes()): (len(item.expressions), number)
        for image in data.images
        for item in image.objects
        for number, said in enumerate(item.expressions)
    }
    drawn: dict[int, set[int]] = {}
    for batch in Feed(data, OBJECTS).epoch(0):
        for name, tokens in zip(batch.names, batch.tokens, strict=True):
            count, number = numbers[name, tokens.numpy().tobytes()]
            drawn.setdefault(count, set()).add(number)
    # About 60 objects with two to four expressions each: not all took the same.
    assert all(len(seen) > 1 for count, seen in drawn.items() if count > 1)


def test_an_epoch_visits_every_object_once(data: ReferData) -> None:
    plan = dataclasses.replace(OBJECTS, images_per_batch=1)
    seen = Counter(name for batch in Feed(data, plan).epoch(0) for name in batch.names)
    assert seen == {image.path.name: len(image.objects) for image in data.images}


def test_an_object_comes_with_one_of_its_expressions_at_random(data: ReferData) -> None:
    known = {
        (image.path.name, data.tokens(said).tobytes()): data.target(image, item)
        for image in data.images
        for item in image.objects
        for said in item.expressions
    }
    drawn = set()
    feed = Feed(data, OBJECTS)
    for epoch in range(3):
        for batch in feed.epoch(epoch):
            for row, name in enumerate(batch.names):
                key = name, batch.tokens[row].numpy().tobytes()
                assert np.array_equal(np.rint(batch.target[row, 0].numpy() * 255), known[key])
                drawn.add(key)
    # Three draws from about three expressions each: more than one of most, if they are random.
    assert len(drawn) > 1.5 * sum(len(image.objects) for image in data.images)


def test_another_epoch_draws_again(split: tuple[ReferImage, ...]) -> None:
    """One picture has the same place in every epoch: what is drawn there must not be the same."""
    plan = dataclasses.replace(IMAGES, images_per_batch=1, expressions_per_image=1)
    feed = Feed(ReferData(split[:1], CONFIG, cache=False), plan)
    drawn = {batch.tokens.numpy().tobytes() for epoch in range(8) for batch in feed.epoch(epoch)}
    assert len(drawn) > 2


def test_an_image_comes_with_each_of_its_objects_before_any_again(data: ReferData) -> None:
    for batch in Feed(data, dataclasses.replace(IMAGES, images_per_batch=1)).epoch(0):
        image = next(image for image in data.images if image.path.name == batch.names[0])
        masks = {tuple(target.flatten().tolist()) for target in batch.target}
        assert len(masks) == min(3, len(image.objects))
    names = [name for batch in Feed(data, IMAGES).epoch(0) for name in batch.names]
    assert len(set(names)) == len(names) == 12  # 15 pictures, 3 batches of 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_per_batch": 0}, "images_per_batch must be at least 1"),
        ({"expressions_per_image": 2}, "draw 'object'"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"images_per_batch": 6}, "does not divide by 4 processes"),
        ({"images_per_batch": 4000}, "an epoch has only"),
    ],
)
def test_refused_plans(data: ReferData, change: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Feed(data, dataclasses.replace(OBJECTS, **change), world=4)


def test_refused_ranks_epochs_and_caches(data: ReferData, split: tuple[ReferImage, ...]) -> None:
    with pytest.raises(InputError, match="rank is 2"):
        Feed(data, OBJECTS, rank=2, world=2)
    with pytest.raises(InputError, match="start 100"):
        Feed(data, OBJECTS).epoch(0, 100)
    with pytest.raises(InputError, match="cache is on"):
        Feed(ReferData(split, CONFIG, cache=True), dataclasses.replace(OBJECTS, workers=1))


def with_broken(split: tuple[ReferImage, ...], folder: Path, broken: int) -> list[ReferImage]:
    """The split's pictures in `folder`, the first `broken` of them without pixels."""
    moved = []
    for number, image in enumerate(split):
        path = folder / image.path.name
        data = image.path.read_bytes()
        path.write_bytes(data[:300] if number < broken else data)
        moved.append(dataclasses.replace(image, path=path))
    return moved


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_picture_is_named(
    split: tuple[ReferImage, ...], tmp_path: Path, workers: int
) -> None:
    data = ReferData(with_broken(split, tmp_path, 1), CONFIG, cache=False)
    feed = Feed(data, dataclasses.replace(IMAGES, images_per_batch=1, workers=workers))
    name = re.escape(data.images[0].path.name)
    for _ in range(2):  # an error ends an epoch, not the feed
        with pytest.raises(ImageError, match=rf"^image \S+{name} [^\n]* truncated [^\n]*$"):
            list(feed.epoch(0))


def test_a_broken_picture_is_replaced_and_counted(
    split: tuple[ReferImage, ...], tmp_path: Path
) -> None:
    data = ReferData(with_broken(split, tmp_path, 2), CONFIG, cache=False)
    lost = {image.path for image in data.images[:2]}
    plan = dataclasses.replace(IMAGES, images_per_batch=1, skip_broken=True)
    batches = []
    for workers in (0, 2):
        feed = Feed(data, dataclasses.replace(plan, workers=workers))
        batches.append(list(feed.epoch(0)))
        assert len(batches[-1]) == len(data)
        assert {broken.path for broken in feed.broken} == lost
        assert all(broken.count >= 1 and "truncated" in broken.reason for broken in feed.broken)
    assert_equal(*batches)
    assert not {path.name for path in lost} & {n for batch in batches[0] for n in batch.names}


def test_too_many_broken_pictures_are_an_error(
    split: tuple[ReferImage, ...], tmp_path: Path
) -> None:
    data = ReferData(with_broken(split, tmp_path, len(split)), CONFIG, cache=False)
    with pytest.raises(DataError, match="20 pictures in a row"):
        list(Feed(data, dataclasses.replace(IMAGES, skip_broken=True)).epoch(0))


def test_missing_pictures_are_told_before_the_first_batch(
    split: tuple[ReferImage, ...], tmp_path: Path
) -> None:
    moved = with_broken(split, tmp_path, 0)
    moved[3].path.unlink()
    moved[5].path.unlink()
    data = ReferData(moved, CONFIG, cache=False)
    with pytest.raises(DataError, match=rf"2 of 15 pictures are missing.*{moved[3].path.name}"):
        Feed(data, IMAGES)
    feed = Feed(data, dataclasses.replace(IMAGES, skip_broken=True))
    assert all(batch.names for batch in feed.epoch(0))


def test_a_worker_that_dies_is_an_error(data: ReferData) -> None:
    others = set(multiprocessing.active_children())
    feed = Feed(data, dataclasses.replace(OBJECTS, workers=1))
    next(feed.epoch(0))
    (worker,) = set(multiprocessing.active_children()) - others

    def lose_it() -> None:
        with lost_workers_named(1):  # torch says so wherever this process is
            worker.kill()
            list(feed.epoch(1))

    with pytest.raises(DataError, match="lower workers"):
        lose_it()


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_batch_that_went_with_its_worker_is_an_error(
    data: ReferData, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def gone(self: object) -> None:
        raise error("gone")

    # How a process takes a tensor's memory over from another one.
    monkeypatch.setattr("multiprocessing.resource_sharer.DupFd.detach", gone)
    with pytest.raises(DataError, match=r"ended \(gone\).*lower workers"):
        next(Feed(data, dataclasses.replace(OBJECTS, workers=1)).epoch(0))


def test_too_little_shared_memory_is_an_error(
    data: ReferData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(samples: object) -> None:
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device"
        )

    monkeypatch.setattr(rows, "pack", full)
    with pytest.raises(DataError, match="--shm-size"):
        next(Feed(data, dataclasses.replace(OBJECTS, workers=1)).epoch(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_for_a_gpu_are_pinned(data: ReferData, workers: int) -> None:
    plan = dataclasses.replace(IMAGES, workers=workers)
    feed = Feed(data, plan, pin_memory=True)
    for packed in feed.packed(0):
        assert packed.square.is_pinned()
        assert packed.target.is_pinned()
    ours = [batch.image.cpu() for batch in feed.epoch(1, device="cuda")]
    theirs = [batch.image for batch in Feed(data, plan).epoch(1)]
    assert all(torch.equal(our, their) for our, their in zip(ours, theirs, strict=True))
