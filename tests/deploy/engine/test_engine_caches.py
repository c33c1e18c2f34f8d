"""What is computed once: caches, and threads that ask for the same at once."""

import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cris_deploy import Engine
from cris_deploy.bundle.reading import GraphName
from cris_deploy.errors import BackendError
from tests.helpers.engines import check, count


def test_repeated_images_and_expressions_are_computed_once(engine, images, reference):
    graphs = count(engine)
    for _ in range(3):
        for expression in ("a", "b"):
            check(engine.segment(images[0].copy(), expression), images[0], expression, reference)
    assert graphs[GraphName.IMAGE_ENCODER].rows == 1
    assert graphs[GraphName.TEXT_ENCODER].rows == 2
    engine.segment(images[0], ["b", "c", "c", "a", "C "])  # "C " has the tokens of "c"
    assert graphs[GraphName.TEXT_ENCODER].rows == 3


def test_caches_are_off_by_a_flag(tiny_bundle, images, reference):
    with Engine(tiny_bundle, cache=False) as engine:
        graphs = count(engine)
        for _ in range(3):
            check(engine.segment(images[0], "a"), images[0], "a", reference)
        assert graphs[GraphName.IMAGE_ENCODER].rows == 3
        assert graphs[GraphName.TEXT_ENCODER].rows == 3


def test_caches_are_bounded(tiny_bundle, images):
    with Engine(tiny_bundle, image_cache=2, text_cache=3) as engine:
        for image in images:
            engine.segment(image, [f"n{index}" for index in range(9)])
        assert [cache.kept for cache in engine.pipeline.caches] == [2, 3]


def test_results_do_not_share_memory_with_the_caches(engine, images):
    first = engine.segment(images[0], "a")
    expected = first.logits.copy()
    first.logits[:] = 0
    first.mask[:] = False
    np.testing.assert_array_equal(engine.segment(images[0], "a").logits, expected)


def test_same_square_of_other_image_sizes(engine):
    # Both letterbox to the same plain square; the mask must have each image's own size.
    for side in (32, 64, 128):
        image = np.full((side, side, 3), 100, np.uint8)
        assert engine.segment(image, "a").mask.shape == (side, side)
    assert (
        engine.pipeline.caches[0].kept <= 2
    )  # interpolation may differ at the border for one of them


def test_many_threads_many_requests(engine, images, reference):
    jobs = [(i, e) for i in range(4) for e in ("a", "b", "some dog")] * 6

    def work(job):
        index, expression = job
        return job, engine.segment(images[index], expression)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(8) as pool:
            for (index, expression), result in pool.map(work, jobs):
                check(result, images[index], expression, reference)


def test_concurrent_identical_images_are_encoded_once(engine, images):
    graphs = count(engine)
    encoder = graphs[GraphName.IMAGE_ENCODER]
    original = encoder.graph

    class Slow:
        def run(self, inputs):
            time.sleep(0.2)
            return original.run(inputs)

    encoder.graph = Slow()
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda _: engine.segment(images[0], "a"), range(6)))
    assert encoder.runs == 1
    assert all((result.logits == results[0].logits).all() for result in results)


def test_an_error_while_others_wait_reaches_only_its_own_call(engine, images):
    graphs = count(engine)
    encoder = graphs[GraphName.IMAGE_ENCODER]
    original = encoder.graph
    failures = [BackendError("out of memory")]

    class Failing:
        def run(self, inputs):
            time.sleep(0.1)
            if failures:
                raise failures.pop()
            return original.run(inputs)

    encoder.graph = Failing()

    def attempt(_):
        try:
            return engine.segment(images[0], "a")
        except BackendError as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(attempt, range(4)))
    assert sum(isinstance(result, BackendError) for result in results) == 1
