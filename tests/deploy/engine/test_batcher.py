"""The batcher: what goes into a run together, who waits, who is given up, and that none is lost."""

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.batcher import Batcher, BatchLimits
from cris_deploy.errors import (
    BackendError,
    BusyError,
    EngineTimeoutError,
    ExpressionError,
    ImageError,
    InputError,
)
from cris_deploy.execution.executor import MaskStep
from cris_deploy.execution.steps import Picture, Prompt
from cris_deploy.pixels.mask import UpsampledMask

WAIT = 60.0  # no test waits so long; one that fails does


class Steps:
    """Records runs. `hold()` keeps all runs from ending until it is left."""

    def __init__(self) -> None:
        self.images: list[list[int]] = []
        self.pairs: list[list[tuple[int, str]]] = []
        self.running = threading.Semaphore(0)
        self.free = threading.Event()
        self.free.set()
        self.broken: Exception | None = None

    @contextmanager
    def hold(self) -> Iterator[None]:
        self.free.clear()
        try:
            yield
        finally:
            self.free.set()

    def read_expressions(self, expression: str | Sequence[str], *how: Any) -> list[Prompt]:
        words = [expression] if isinstance(expression, str) else list(expression)
        if "" in words:
            raise ExpressionError("empty")
        return [Prompt(word, np.zeros(3, np.int64), False) for word in words]

    def prepare(self, image: Any) -> Picture:
        if image == "bad":
            raise ImageError("bad image")
        return Picture(np.full((2, 2, 3), int(image), np.uint8), 2, 2)

    def encode_pictures(self, pictures: Sequence[Picture]) -> Any:
        self.images.append([int(picture.square[0, 0, 0]) for picture in pictures])
        self.running.release()
        assert self.free.wait(WAIT)
        if self.broken is not None:
            raise self.broken
        return self.images[-1]

    def decode_masks(self, scenes: Any, prompts: Sequence[Prompt]) -> Any:
        self.pairs.append([(s, p.expression) for s, p in zip(scenes, prompts, strict=True)])
        mask = np.zeros((2, 2), bool)
        return [
            (UpsampledMask(2, 2, 0, None, mask), np.full((1, 1), scene, np.float32), MaskStep(0.35))
            for scene, _ in self.pairs[-1]
        ]


def told(results: Sequence[Any]) -> list[str]:
    """The image that each result is of, and its expression."""
    return [f"{int(result.logits[0, 0])}:{result.expression}" for result in results]


@pytest.fixture
def steps() -> Steps:
    return Steps()


def batcher_of(steps: Any, **limits: Any) -> Batcher:
    return Batcher(steps, BatchLimits(**{"images": 2, "pairs": 4, **limits}))


@contextmanager
def queued(batcher: Batcher, steps: Steps, requests: Sequence[tuple[Any, Any]]) -> Iterator[Any]:
    """Requests that wait, in this order, behind a run that ends when the block is left."""
    with steps.hold():
        first = batcher.submit(0, "first")
        assert steps.running.acquire(timeout=WAIT)
        futures = []
        for image, words in requests:
            futures.append(batcher.submit(image, words))
            end = time.monotonic() + WAIT
            while len(batcher._queue) < len(futures):  # decoded: their order is now fixed
                assert time.monotonic() < end
                time.sleep(0.001)
        yield futures
    assert told(first.result(WAIT)) == ["0:first"]


def test_what_waits_is_merged_by_stage(steps: Steps) -> None:
    requests = [(1, "a"), (2, "b"), (3, "c"), (1, "d"), (2, ["e"])]
    with batcher_of(steps) as batcher:
        with queued(batcher, steps, requests) as futures:
            pass
        found = [told(future.result(WAIT)) for future in futures]
    assert found == [["1:a"], ["2:b"], ["3:c"], ["1:d"], ["2:e"]]
    # Image 3 has to wait for the next run; what asks of images 1 and 2 joins this one.
    assert steps.images == [[0], [1, 2], [3]]
    assert steps.pairs[1] == [(1, "a"), (1, "d"), (2, "b"), (2, "e")]
    counts = batcher.counts()
    assert (counts.image_runs, counts.images, counts.pair_runs, counts.pairs) == (3, 4, 3, 6)
    assert (counts.answered, counts.waiting) == (6, 0)


def test_many_expressions_are_split_and_others_come_between(steps: Steps) -> None:
    many = [f"m{number}" for number in range(6)]
    with batcher_of(steps) as batcher:
        with queued(batcher, steps, [(1, many), (2, "a"), (3, "b")]) as futures:
            pass
        assert told(futures[0].result(WAIT)) == [f"1:{word}" for word in many]
    assert [len(pairs) for pairs in steps.pairs] == [1, 4, 2, 2]
    assert steps.pairs[2] == [(2, "a"), (3, "b")]


def test_a_cancelled_request_costs_no_run(steps: Steps) -> None:
    with batcher_of(steps) as batcher:
        with queued(batcher, steps, [(1, "a"), (2, "b")]) as futures:
            assert futures[0].cancel()
        assert told(futures[1].result(WAIT)) == ["2:b"]
        with pytest.raises(CancelledError):
            futures[0].result(WAIT)
    assert steps.images == [[0], [2]]
    assert batcher.counts().cancelled == 1


def test_cancelled_between_the_stages(steps: Steps) -> None:
    with batcher_of(steps) as batcher:
        with steps.hold():
            future = batcher.submit(1, "a")
            assert steps.running.acquire(timeout=WAIT)
            assert future.cancel()
        assert told(batcher.submit(2, "b").result(WAIT)) == ["2:b"]
    assert steps.images == [[1], [2]]
    assert steps.pairs == [[(2, "b")]]


def test_a_late_request_costs_no_run(steps: Steps) -> None:
    with batcher_of(steps) as batcher:
        with steps.hold():
            batcher.submit(0, "first")
            assert steps.running.acquire(timeout=WAIT)
            late = batcher.submit(1, "a", timeout=1e-3)
            time.sleep(0.01)
        with pytest.raises(EngineTimeoutError, match=r"not been answered in 0.001 s"):
            late.result(WAIT)
    assert steps.images == [[0]]
    assert batcher.counts().late == 1


def test_what_is_too_much_is_refused_and_later_is_not(steps: Steps) -> None:
    with batcher_of(steps, waiting=2) as batcher:
        with queued(batcher, steps, [(1, "a")]) as (second,):
            with pytest.raises(BusyError, match="2 requests wait already"):
                batcher.submit(2, "b")
            second.cancel()  # its place is free at once
            third = batcher.submit(3, "c")
        assert told(third.result(WAIT)) == ["3:c"]
    assert batcher.counts().refused == 1


def test_what_is_wrong_with_one_request_is_its_own(steps: Steps) -> None:
    with batcher_of(steps) as batcher:
        with pytest.raises(ExpressionError):
            batcher.submit(1, "")
        bad, good, none = (
            batcher.submit(*request) for request in (("bad", "a"), (1, "a"), (2, []))
        )
        with pytest.raises(ImageError):
            bad.result(WAIT)
        assert told(good.result(WAIT)) == ["1:a"]
        assert told(none.result(WAIT)) == []
    assert steps.images == [[1]]


def test_a_run_that_fails_fails_those_in_it_and_no_others(steps: Steps) -> None:
    with batcher_of(steps) as batcher:
        with queued(batcher, steps, []):
            pass
        steps.broken = BackendError("lost")
        for future in [batcher.submit(1, "a"), batcher.submit(2, ["b", "c"])]:
            with pytest.raises(BackendError, match="lost"):
                future.result(WAIT)
        steps.broken = None
        assert told(batcher.submit(3, "d").result(WAIT)) == ["3:d"]


def test_a_worker_waits_for_company_only_as_long_as_it_is_told(steps: Steps) -> None:
    # A delay without end: only a full batch can begin.
    with batcher_of(steps, images=3, delay=WAIT) as batcher:
        futures = [batcher.submit(image, "a") for image in (1, 2, 3)]
        assert [told(future.result(WAIT / 2)) for future in futures] == [["1:a"], ["2:a"], ["3:a"]]
        alone = batcher.submit(4, "b")
    assert told(alone.result(0)) == ["4:b"]  # closing waits for nobody's company
    assert [sorted(images) for images in steps.images] == [[1, 2, 3], [4]]


def test_closing_answers_what_was_taken(steps: Steps) -> None:
    batcher = batcher_of(steps, images=1)
    futures = [batcher.submit(image, ["a", "b"]) for image in range(20)]
    batcher.close()
    assert [told(future.result(0)) for future in futures] == [
        [f"{i}:a", f"{i}:b"] for i in range(20)
    ]
    with pytest.raises(InputError, match="batcher is closed"):
        batcher.submit(1, "a")
    batcher.close()


def test_coroutines(steps: Steps) -> None:
    async def ask(batcher: Batcher) -> list[Any]:
        with pytest.raises(ImageError):
            await batcher.segment("bad", "a")
        with steps.hold():
            abandoned = asyncio.create_task(batcher.segment(0, "first"))
            assert await asyncio.to_thread(steps.running.acquire, timeout=WAIT)
            with pytest.raises(EngineTimeoutError):
                await batcher.segment(1, "late", timeout=0.01)
            gone = asyncio.create_task(batcher.segment(2, "gone"))
            await asyncio.sleep(0.01)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
        one, several = await asyncio.gather(batcher.segment(3, "a"), batcher.segment(4, ["b", "c"]))
        return [told([await abandoned]), told([one]), told(several)]

    with batcher_of(steps) as batcher:
        assert asyncio.run(ask(batcher)) == [["0:first"], ["3:a"], ["4:b", "4:c"]]
    assert sorted(image for run in steps.images for image in run) == [0, 3, 4]
    assert (batcher.counts().late, batcher.counts().cancelled) == (1, 1)


@pytest.mark.parametrize("bad", [{"images": 0}, {"pairs": 1.5}, {"delay": -1}, {"waiting": True}])
def test_bad_limits(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        BatchLimits(**{"images": 1, "pairs": 1, **bad})


def test_bad_timeout(steps: Steps) -> None:
    with batcher_of(steps) as batcher, pytest.raises(InputError, match="timeout is 0"):
        batcher.submit(1, "a", timeout=0)


def test_masks_are_the_engine_s(tiny_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (30 + i, 40, 3), np.uint8) for i in range(4)]
    asked = [(images[i % 4], ["a", "b c"] if i % 3 else "d") for i in range(24)]
    with Engine(tiny_bundle, backend="onnxruntime") as engine:
        expected = [engine.segment(image, words) for image, words in asked]
        with (
            Batcher(engine, BatchLimits(images=4, pairs=8), workers=2) as batcher,
            ThreadPoolExecutor(8) as pool,
        ):
            futures: list[Future[Any]] = list(pool.map(lambda a: batcher.submit(*a), asked))
            found = [future.result(WAIT) for future in futures]
    for results, right in zip(found, expected, strict=True):
        rights = right if isinstance(right, list) else [right]
        for result, one in zip(results, rights, strict=True):
            np.testing.assert_array_equal(result.mask, one.mask)
            assert result.expression == one.expression


def test_a_forked_process_has_no_threads_of_a_batcher(tiny_bundle, monkeypatch):
    with Engine(tiny_bundle, backend="onnxruntime") as engine, Batcher(engine) as batcher:
        monkeypatch.setattr("os.getpid", lambda: -1)
        with pytest.raises(InputError, match=r"forked.*a new Batcher"):
            batcher.submit(np.zeros((8, 8, 3), np.uint8), "a")
        monkeypatch.undo()
        assert len(batcher.submit(np.zeros((8, 8, 3), np.uint8), ["a"]).result(60)) == 1


def test_masks_go_when_their_caller_is_done_with_them(tiny_bundle: Path) -> None:
    """At once: the garbage collector counts objects, not the megabytes that they hold."""
    image = np.zeros((30, 40, 3), np.uint8)

    async def ask(batcher: Batcher) -> list[Any]:
        found = await batcher.segment(image, ["a", "b"], timeout=WAIT)
        return [weakref.ref(each.mask) for each in found]

    gc.collect()
    gc.disable()
    try:
        with Engine(tiny_bundle) as engine, Batcher(engine) as batcher:
            left = [weakref.ref(each.mask) for each in batcher.submit(image, ["a", "b"]).result()]
            left += asyncio.run(ask(batcher))
            end = time.monotonic() + WAIT
            while any(mask() is not None for mask in left):  # a worker may still be about to wait
                assert time.monotonic() < end
                time.sleep(0.001)
    finally:
        gc.enable()
