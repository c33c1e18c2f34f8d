"""The engine on a small hand-built bundle: same logits on every way, threads, caches, streams."""

import gc
import logging
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from cris_deploy import Engine, TruncationWarning
from cris_deploy.bundle.reading import Bundle, GraphName
from cris_deploy.errors import BackendError, BundleError, ExpressionError, ImageError, InputError
from cris_deploy.execution.backends import Device
from cris_deploy.pixels.image import letterbox, normalise
from cris_deploy.pixels.mask import mask_from_logits
from cris_deploy.words.tokenizer import Tokenizer
from tests.helpers import tiny_bundle as tiny
from tests.helpers.counted import count

# Same graph, other batch size: float32 sums in another order, of values up to about 10.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = [(48, 80), (90, 40), (17, 31), (64, 64), (1, 1)]
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


@pytest.fixture
def engine(tiny_bundle):
    with Engine(tiny_bundle, threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(tiny_bundle):
    """Logits and mask of the full graph, without the engine."""
    bundle = Bundle.open(tiny_bundle)
    session = onnxruntime.InferenceSession(str(bundle.graph(GraphName.FULL)))
    tokenizer = Tokenizer.from_file(bundle.tokenizer, tiny.WORD_LEN)

    def run(image, expression):
        square = normalise(letterbox(image, tiny.SIZE))[None]
        tokens = tokenizer.encode([expression]).tokens
        logits = session.run(None, {"image": square, "tokens": tokens})[0][0, 0]
        return logits, mask_from_logits(logits, *image.shape[:2], tiny.SIZE, 0.35)

    return run


def check(result, image, expression, reference) -> None:
    logits, mask = reference(image, expression)
    assert result.expression == expression
    assert result.logits.dtype == np.float32
    assert result.mask.dtype == np.bool_
    assert result.mask.shape == image.shape[:2]
    np.testing.assert_allclose(result.logits, logits, atol=TOLERANCE)
    assert (result.mask != mask).mean() < 0.01  # a pixel may lie within TOLERANCE of the threshold


def test_one_image_one_expression(engine, images, reference):
    for image in images:
        check(engine.segment(image, "a cat"), image, "a cat", reference)


def test_the_bundle_tells_expressions_and_images_apart(reference, images):
    # Otherwise the comparisons of this file would prove nothing.
    logits = [reference(i, e)[0] for i in images[:3] for e in ("a cat", "dog")]
    for first in range(len(logits)):
        for second in range(first):
            assert np.abs(logits[first] - logits[second]).max() > 100 * TOLERANCE


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 20])
def test_many_expressions(engine, images, reference, count):
    expressions = [f"n{index % 13}" for index in range(count)]  # some are repeated
    results = engine.segment(images[0], expressions)
    assert isinstance(results, list)
    assert len(results) == count
    for result, expression in zip(results, expressions, strict=True):
        check(result, images[0], expression, reference)
    assert len(engine.segment(images[0], tuple(expressions))) == count


def test_scene(engine, images, reference):
    scene = engine.encode_image(images[1])
    assert (scene.height, scene.width) == (90, 40)
    check(scene.segment("dog"), images[1], "dog", reference)
    for result, expression in zip(scene.segment(["x", "y"]), "xy", strict=True):
        check(result, images[1], expression, reference)


def test_files_bytes_and_pil(engine, images, tmp_path):
    from PIL import Image

    path = tmp_path / "x.png"
    cv2.imwrite(str(path), images[0][:, :, ::-1])
    expected = engine.segment(images[0], "a cat").logits
    for source in (path, str(path), path.read_bytes(), Image.fromarray(images[0])):
        np.testing.assert_array_equal(engine.segment(source, "a cat").logits, expected)


# Caches


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
        assert engine.pipeline.cached == (2, 3)


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
    assert engine.pipeline.cached[0] <= 2  # interpolation may differ at the border for one of them


# Threads


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


# Streams


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


def test_stream_sees_a_file_that_changed(engine, images, tmp_path):
    path = tmp_path / "x.png"

    def pairs():
        for index in range(2):
            cv2.imwrite(str(path), images[index])
            yield path, "a"
            time.sleep(0.1)  # let the thread read it before it changes

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


# Expressions


def test_cut_expressions_say_so_once(engine, images):
    long = "far too long"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert engine.segment(images[0], long).truncated
        results = engine.segment(images[0], ["a", long, "one two three"])
    assert [result.truncated for result in results] == [False, True, True]
    assert [w.category for w in caught] == [TruncationWarning] * 2
    assert "far too long" in str(caught[0].message)


@pytest.mark.parametrize(
    "call",
    [
        lambda engine, image: engine.segment(image, "one two three"),
        lambda engine, image: engine.segment(image, ["a", "one two three"]),
        lambda engine, image: engine.encode_image(image).segment("one two three"),
        lambda engine, image: list(engine.stream([(image, "one two three")])),
        lambda engine, image: list(engine.stream([(image, "one two three")], on_error="yield")),
    ],
)
def test_a_warning_points_at_the_line_of_the_caller(engine, images, call):
    with pytest.warns(TruncationWarning) as caught:
        call(engine, images[0])
    (warning,) = caught
    assert (warning.filename, warning.lineno) == (__file__, call.__code__.co_firstlineno)


@pytest.mark.parametrize("wrong", ["", " \n", None, 5, b"cat", ["a", ""], ["a", None], {"a"}])
def test_unusable_expressions(engine, images, wrong):
    graphs = count(engine)
    with pytest.raises(ExpressionError, match="expression"):
        engine.segment(images[0], wrong)
    with pytest.raises(ExpressionError, match="expression"):
        engine.encode_image(images[0]).segment(wrong)
    assert graphs[GraphName.MASK_DECODER].runs == 0


def test_unusual_characters(engine, images):
    for text in ("🧑‍🚀", "שמאל", "a\x00b\x07", "\u202eabc", "&lt;", "!!!", "<end_of_text>"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            assert engine.segment(images[0], text).expression == text


# Opening, choosing, closing


def test_info_and_log(tiny_bundle, caplog):
    with caplog.at_level(logging.INFO, logger="cris_deploy"):
        engine = Engine(tiny_bundle, threads=1)
        Engine(tiny_bundle, backend="onnxruntime", threads=1)
    chosen, record = caplog.records
    assert "auto" in chosen.message
    assert f"{engine.info.backend} on cpu in fp32" in chosen.message
    assert "onnxruntime on cpu in fp32" in record.message
    engine = Engine(tiny_bundle, backend="onnxruntime", threads=1)
    assert engine.info.backend == "onnxruntime"
    assert engine.info.device == "cpu"
    assert engine.info.choice.version == onnxruntime.__version__
    assert engine.info.model.word_len == tiny.WORD_LEN
    asked = Engine(tiny_bundle, backend="onnxruntime", device="cpu").info
    assert "asked for" in asked.reason


def test_close(engine, images):
    scene = engine.encode_image(images[0])
    stream = engine.stream([(images[0], "a")] * 9, batch_size=2)
    next(stream)
    engine.close()
    for use in (
        lambda: engine.segment(images[0], "a"),
        lambda: engine.encode_image(images[0]),
        lambda: engine.stream([]),
        lambda: scene.segment("a"),
        lambda: list(stream),
    ):
        with pytest.raises(InputError, match="engine is closed"):
            use()
    engine.close()  # again


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"backend": "tensorflow"}, InputError, "auto, tensorrt, .*onnxruntime"),
        ({"device": "tpu"}, InputError, "auto, cpu, cuda"),
        ({"backend": 3}, InputError, "backend is 3: give one of auto, tensorrt"),
        ({"device": None}, InputError, "device is None: give one of"),
        ({"precision": ["fp32"]}, InputError, r"precision is \['fp32'\] \(list\): give one of"),
        ({"threads": 0}, InputError, "threads is 0: give a whole number, 1 to 1024, or None"),
        ({"threads": "2"}, InputError, "threads is '2': give a whole number"),
        ({"threads": 10**12}, InputError, "threads is 1000000000000: give a whole number, 1 to"),
        ({"streams": 1.0}, InputError, "streams is 1.0: give a whole number, 1 to 1024"),
        ({"streams": True}, InputError, "streams is True"),
        ({"image_cache": -1}, InputError, "image_cache is -1: give a whole number, at least 0"),
        ({"image_cache": None}, InputError, "image_cache is None"),
        ({"text_cache": -1}, InputError, "text_cache"),
        ({"text_cache": b"1"}, InputError, r"text_cache is b'1' \(bytes\)"),
        ({"max_pixels": 0}, InputError, "max_pixels"),
        ({"max_pixels": 1.5}, InputError, "max_pixels is 1.5"),
        ({"cache": "no"}, InputError, "cache is 'no': give True or False"),
        ({"cuda_graphs": None}, InputError, "cuda_graphs is None: give True or False"),
        ({"verify": 1}, InputError, "verify is 1: give True or False"),
        ({"trust_plans": "yes"}, InputError, "trust_plans is 'yes': give True or False"),
        ({"manifest_sha256": "abc"}, InputError, "manifest_sha256 is 'abc': give 64 hexadecimal"),
        ({"manifest_sha256": 5}, InputError, "manifest_sha256 is 5"),
    ],
)
def test_bad_options(tiny_bundle, options, error, message):
    with pytest.raises(error, match=message):
        Engine(tiny_bundle, **options)


@pytest.mark.parametrize("wrong", [None, 3, b"a.bundle", ["a.bundle"]])
def test_a_bundle_that_is_no_path(wrong):
    with pytest.raises(InputError, match=r"bundle is .*: give the directory cris-export wrote"):
        Engine(wrong)


def test_numbers_of_numpy_are_numbers(tiny_bundle, images):
    two = np.int64(2)
    with Engine(tiny_bundle, threads=two, image_cache=two, max_pixels=np.int32(10**6)) as engine:
        assert len(list(engine.stream([(images[0], "a")] * 3, batch_size=np.uint8(2)))) == 3


def test_pixel_limit(tiny_bundle, images):
    with Engine(tiny_bundle, max_pixels=100) as engine, pytest.raises(ImageError, match="limit"):
        engine.segment(images[0], "a")


def test_damaged_bundle(own_bundle):
    with (own_bundle / "weights.bin").open("r+b") as stream:
        stream.write(b"x")
    with pytest.raises(BundleError, match="changed"):
        Engine(own_bundle)


def test_graph_that_is_none(own_bundle):
    path = own_bundle / "mask_decoder.onnx"
    path.write_bytes(path.read_bytes().replace(b"MatMul", b"MutMal"))
    with pytest.raises(BackendError, match=r"cannot load mask_decoder\.onnx"):
        Engine(own_bundle, verify=False)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(BundleError, match=r"mask_decoder\.onnx is not an ONNX file"):
        Engine(own_bundle, verify=False)


def test_graphs_with_other_names(own_bundle):
    manifest = own_bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"f4"', '"f6"'))
    with pytest.raises(BundleError, match="export it again"):
        Engine(own_bundle)


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this onnxruntime has CUDA",
)
def test_cuda_is_refused_where_there_is_none(tiny_bundle):
    with pytest.raises(BackendError, match=r"onnxruntime as installed.*cris-deploy\[gpu\]"):
        Engine(tiny_bundle, device="cuda")


def test_onnxruntime_missing(tiny_bundle, monkeypatch):
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda n, *a: None if n in ("onnxruntime", "openvino") else original(n, *a),
    )
    for backend in ("auto", "onnxruntime"):
        with pytest.raises(BackendError, match=r"pip install 'cris-deploy\[cpu\]'"):
            Engine(tiny_bundle, backend=backend)


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_auto_tells_why_cuda_was_not_taken(tiny_bundle, monkeypatch):
    from cris_deploy.execution.backends import onnxruntime as backend

    # An installation that was built for CUDA on a machine where it does not work.
    monkeypatch.setattr(backend, "installed_devices", lambda: (Device.CPU, Device.CUDA))
    engine = Engine(tiny_bundle)
    assert engine.info.device is Device.CPU
    assert "passed over: " in engine.info.reason
    assert "onnxruntime on cuda (" in engine.info.reason
    with pytest.raises(BackendError, match="on cuda"):
        Engine(tiny_bundle, device="cuda")


def test_small_overhead(tiny_bundle, images):
    # Measured about 0.1 ms beside the stages; the bound is for busy machines.
    with Engine(tiny_bundle, threads=1) as engine:
        scene = engine.encode_image(images[0])
        graphs = count(engine)
        stages = []
        for graph in graphs.values():
            original = graph.graph.run

            def timed(inputs, original=original):
                start = time.perf_counter()
                outputs = original(inputs)
                stages.append(time.perf_counter() - start)
                return outputs

            graph.graph = type("Timed", (), {"run": staticmethod(timed)})()
        overheads = []
        for _ in range(30):
            stages.clear()
            start = time.perf_counter()
            scene.segment("a cat")
            overheads.append(time.perf_counter() - start - sum(stages))
    assert float(np.median(overheads)) < 2e-3


def test_bundle_path_as_text(tiny_bundle):
    assert Engine(str(tiny_bundle)).info.bundle == Path(tiny_bundle)
