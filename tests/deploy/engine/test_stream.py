"""Streams over buffers that are used again, bad images that are passed by, and threads."""

import gc
import threading
import time
import weakref

import cv2
import numpy as np
import pytest
from PIL import Image

from cris_deploy import Engine, Segmentation
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.errors import BackendError, CrisError, ExpressionError, ImageError, InputError
from tests.helpers.engines import count


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    rng = np.random.default_rng(8)
    return [rng.integers(0, 256, (48, 80, 3), dtype=np.uint8) for _ in range(12)]


@pytest.fixture
def engine(tiny_bundle):
    with Engine(tiny_bundle, threads=1, cache=False) as engine:
        yield engine


def encoded(frame: np.ndarray) -> bytes:
    return cv2.imencode(".bmp", frame[:, :, ::-1])[1].tobytes()


def into_array(frames):
    buffer = np.empty_like(frames[0])
    for frame in frames:
        buffer[...] = frame
        yield buffer


def into_a_view(frames):
    buffer = np.zeros((48, 80, 4), np.uint8)
    for frame in frames:
        buffer[:, :, :3] = frame
        yield buffer[:, :, :3]


def into_pil(frames):
    picture = Image.new("RGB", (80, 48))
    for frame in frames:
        picture.paste(Image.fromarray(frame))
        yield picture


def into_bytearray(frames):
    buffer = bytearray(len(encoded(frames[0])))
    for frame in frames:
        buffer[:] = encoded(frame)
        yield buffer


def into_memoryview(frames):
    for buffer in into_bytearray(frames):
        yield memoryview(buffer)


@pytest.mark.parametrize(
    "reuse", [into_array, into_a_view, into_pil, into_bytearray, into_memoryview]
)
def test_a_buffer_that_is_used_again_gives_each_frame_its_own_mask(engine, frames, reuse):
    for batch_size in (1, 5):
        stream = engine.stream(((image, "a") for image in reuse(frames)), batch_size=batch_size)
        for result, frame in zip(stream, frames, strict=True):
            expected = engine.segment(frame, "a")
            np.testing.assert_allclose(result.logits, expected.logits, atol=1e-4)


def test_a_pil_file_that_is_closed_after_it_was_drawn(engine, frames, tmp_path):
    path = tmp_path / "x.bmp"
    path.write_bytes(encoded(frames[0]))

    def pairs():
        for _ in range(3):
            with Image.open(path) as picture:
                yield picture, "a"

    assert len(list(engine.stream(pairs()))) == 3


BAD = [
    ("none.png", "a", ImageError),
    (b"no picture", "a", ImageError),
    (np.zeros((4, 4, 3)), "a", ImageError),
    (np.broadcast_to(np.uint8(0), (10**6, 10**6, 3)), "a", ImageError),  # 3 TB, were it copied
    (np.zeros((4, 4, 3), np.uint8), " ", ExpressionError),
    (np.zeros((4, 4, 3), np.uint8), 3, ExpressionError),
]


@pytest.mark.parametrize(("image", "expression", "error"), BAD)
@pytest.mark.parametrize("position", [0, 2, 6])
def test_a_bad_pair_is_an_item_and_the_stream_goes_on(
    engine, frames, image, expression, error, position
):
    pairs = [(frame, "a") for frame in frames[:7]]
    pairs[position] = (image, expression)
    items = list(engine.stream(pairs, batch_size=3, on_error="yield"))
    assert [isinstance(item, Segmentation) for item in items] == [i != position for i in range(7)]
    assert type(items[position]) is error
    expected = engine.segment(frames[5], "a") if position != 5 else None
    if expected is not None:
        np.testing.assert_allclose(items[5].logits, expected.logits, atol=1e-4)


def test_many_bad_ones(engine, frames):
    items = list(engine.stream([("no", "a"), None, "ab", 5] * 4, batch_size=3, on_error="yield"))
    assert len(items) == 16
    assert all(isinstance(item, CrisError) for item in items)
    assert isinstance(items[1], InputError)


def test_what_the_pairs_themselves_raise_is_an_end(engine, frames):
    def pairs():
        yield frames[0], "a"
        yield "none.png", "a"
        raise OSError("the camera is gone")

    stream = engine.stream(pairs(), on_error="yield")
    assert isinstance(next(stream), Segmentation)
    assert isinstance(next(stream), ImageError)
    with pytest.raises(OSError, match="camera"):
        next(stream)
    assert list(stream) == []


def test_a_failing_backend_is_the_item_of_its_batch(engine, frames, monkeypatch):
    decode = engine.pipeline.decode
    failures = [BackendError("out of memory")]

    def failing(*arguments):
        if failures:
            raise failures.pop()
        return decode(*arguments)

    monkeypatch.setattr(engine.pipeline, "decode", failing)
    items = list(engine.stream([(f, "a") for f in frames[:5]], batch_size=2, on_error="yield"))
    assert [isinstance(item, BackendError) for item in items] == [True, True, False, False, False]


def test_a_closed_engine_is_an_end(engine, frames):
    stream = engine.stream(((frame, "a") for frame in frames), batch_size=2, on_error="yield")
    next(stream), next(stream)
    engine.close()
    with pytest.raises(InputError, match="engine is closed"):
        list(stream)


class Decoding:
    """Counts the threads that decode at once; each waits for `together` of them."""

    def __init__(self, engine, together: int) -> None:
        self.prepare = engine.pipeline.prepare
        self.barrier = threading.Barrier(together)
        self.threads: set[str] = set()

    def __call__(self, image):
        self.threads.add(threading.current_thread().name)
        self.barrier.wait(10)
        return self.prepare(image)


def test_files_are_decoded_by_several_threads_in_order(engine, frames, monkeypatch):
    decoding = Decoding(engine, 3)
    monkeypatch.setattr(engine.pipeline, "prepare", decoding)
    pairs = [(encoded(frame), "a") for frame in frames]
    stream = engine.stream(pairs, batch_size=6, decode_threads=3)
    results = list(stream)  # a broken barrier, where fewer come together, is an error
    assert len(decoding.threads) == 3
    assert all(name.startswith("cris-decode") for name in decoding.threads)
    monkeypatch.undo()
    for result, frame in zip(results, frames, strict=True):
        expected = engine.segment(frame, "a")
        np.testing.assert_allclose(result.logits, expected.logits, atol=1e-4)


def test_a_file_that_comes_again_is_decoded_once_by_all_threads(
    engine, frames, tmp_path, monkeypatch
):
    paths = []
    for index in range(3):
        paths.append(tmp_path / f"{index}.bmp")
        paths[-1].write_bytes(encoded(frames[index]))
    prepared = []
    prepare = engine.pipeline.prepare

    def slow(image):
        prepared.append(image)
        time.sleep(0.05)
        return prepare(image)

    monkeypatch.setattr(engine.pipeline, "prepare", slow)
    pairs = [(path, f"n{index}") for path in paths for index in range(4)]
    results = list(engine.stream(pairs, batch_size=6, decode_threads=4))
    assert sorted(prepared) == paths
    assert [result.expression for result in results] == [text for _, text in pairs]


def test_a_bad_file_that_comes_again_is_an_error_each_time(engine, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"rubbish")
    items = list(engine.stream([(path, "a")] * 3, on_error="yield"))
    assert [type(item) for item in items] == [ImageError] * 3


def test_an_error_that_is_let_go_is_gone_at_once(engine, frames, tmp_path, monkeypatch):
    """Not with the collector's next turn: its traceback holds the pixels of its batch."""

    def failing(*arguments):
        raise BackendError("out of memory")

    broken = tmp_path / "x.png"
    broken.write_bytes(b"rubbish")
    pairs = [(broken, "a"), (b"rubbish", "a"), ("none.png", "a"), None, (frames[0], "a")]
    monkeypatch.setattr(engine.pipeline, "decode", failing)
    gc.collect()
    gc.disable()
    try:
        items = list(engine.stream(pairs, batch_size=len(pairs), on_error="yield"))
        kept = [weakref.ref(item) for item in items]
        del items
        assert [ref() for ref in kept] == [None] * len(pairs)
    finally:
        gc.enable()


@pytest.mark.parametrize("count", [2, 9])
def test_an_interrupt_ends_the_threads(engine, frames, count):
    def pairs():
        for _ in range(count):
            yield encoded(frames[0]), "a"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(engine.stream(pairs(), batch_size=2, decode_threads=3))
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("cris-decode")]


def test_graphs_run_in_batches_beside_bad_pairs(engine, frames):
    graphs = count(engine)
    pairs = [(frames[0], "a"), ("none", "a"), (frames[1], "b"), (frames[2], "c")]
    assert len(list(engine.stream(pairs, batch_size=4, on_error="yield"))) == 4
    decoder = graphs[GraphName.MASK_DECODER]
    assert (decoder.runs, decoder.rows) == (1, 3)
