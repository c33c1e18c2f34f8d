"""What a stream gives when: results and errors in the order of the pairs, drawn not too early."""

import gc
import threading

import cv2
import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.bundle.reading import GraphName
from cris_deploy.errors import ExpressionError, ImageError, InputError
from tests.helpers.engines import check, count


def test_stream_equals_single_calls_in_order(engine, images, reference):
    pairs = [(images[i % 5], f"n{i % 7}") for i in range(23)]
    for batch_size in (1, 4, 8, 50):
        results = list(engine.stream(iter(pairs), batch_size=batch_size))
        assert len(results) == len(pairs)
        for result, (image, expression) in zip(results, pairs, strict=True):
            check(result, image, expression, reference)


def test_stream_encodes_repeated_images_once(tiny_bundle, images, tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    cv2.imwrite(str(path), images[0])
    with Engine(tiny_bundle, cache=False) as engine:
        graphs = count(engine)
        prepared = []
        original = engine.pipeline.prepare
        monkeypatch.setattr(engine.pipeline, "prepare", lambda i: prepared.append(i) or original(i))
        list(engine.stream([(path, f"n{index}") for index in range(8)], batch_size=8))
        assert graphs[GraphName.IMAGE_ENCODER].rows == 1
        assert graphs[GraphName.MASK_DECODER].runs == 1
        assert len(prepared) == 1  # and decoded once


def test_stream_sees_a_file_that_changed(engine, images, tmp_path, monkeypatch):
    path, read = tmp_path / "x.png", threading.Semaphore(0)
    prepare = engine.pipeline.prepare

    def prepare_and_tell(image):
        prepared = prepare(image)
        read.release()
        return prepared

    def pairs():
        for index in range(2):
            cv2.imwrite(str(path), images[index])
            yield path, "a"
            assert read.acquire(timeout=20)  # it changes when it was read

    monkeypatch.setattr(engine.pipeline, "prepare", prepare_and_tell)
    first, second = engine.stream(pairs(), batch_size=1)
    assert first.mask.shape != second.mask.shape


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (("none.png", "a"), ImageError),
        ((np.zeros((4, 4, 3), np.uint8), " "), ExpressionError),
        ((np.zeros((4, 4, 3), np.uint8), ["a", "b"]), ExpressionError),
        ("not a pair", InputError),
        (None, InputError),
    ],
)
@pytest.mark.parametrize("position", [0, 2, 5])
def test_stream_raises_in_its_place(engine, images, bad, error, position):
    pairs = [(images[0], "a")] * 6
    pairs[position] = bad
    stream = engine.stream(pairs, batch_size=4)
    for _ in range(position):
        assert next(stream).area >= 0
    with pytest.raises(error):
        next(stream)
    assert not decoding_threads()


def test_stream_raises_the_error_of_the_pairs_themselves(engine, images):
    def pairs():
        yield images[0], "a"
        yield images[1], "b"
        raise OSError("the database is gone")

    stream = engine.stream(pairs(), batch_size=8)
    assert next(stream).expression == "a"
    assert next(stream).expression == "b"
    with pytest.raises(OSError, match="database"):
        next(stream)


def decoding_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("cris-decode")]


def test_stream_closed_early_leaves_no_thread(engine, images):
    file = cv2.imencode(".png", images[0])[1].tobytes()
    stream = engine.stream(((file, "a") for _ in range(10**9)), batch_size=2)
    next(stream)
    assert decoding_threads()
    stream.close()
    assert not decoding_threads()
    stream = engine.stream(((file, "a") for _ in range(10**9)), batch_size=2)
    next(stream)
    del stream
    gc.collect()
    assert not decoding_threads()
    engine.stream(iter([]))  # never started
    assert list(engine.stream(iter([]))) == []
    assert not decoding_threads()


def test_stream_draws_no_more_than_two_batches_ahead(engine, images):
    drawn = []

    def pairs():
        for index in range(100):
            drawn.append(index)
            yield images[0], "a"

    stream = engine.stream(pairs(), batch_size=3)
    next(stream)
    assert len(drawn) <= 6
    stream.close()


def test_stream_arguments_are_checked_at_the_call(engine):
    for batch_size in (0, "8", None, True, 2.0):
        with pytest.raises(InputError, match=r"batch_size is .*: give a whole number, at least 1"):
            engine.stream([], batch_size=batch_size)
    for decode_threads in (0, "2", 10**6):
        with pytest.raises(InputError, match=r"decode_threads is .*, or None for one per core"):
            engine.stream([], decode_threads=decode_threads)
    for on_error in ("ignore", None, ["yield"]):
        with pytest.raises(InputError, match=r"on_error is .*: give 'raise' or 'yield'"):
            engine.stream([], on_error=on_error)
    with pytest.raises(InputError, match=r"pairs is 3: give \(image, expression\) tuples"):
        engine.stream(3)
