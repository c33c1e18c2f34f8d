"""The engine on a GPU that is a stand-in, by every backend: the CPU engine's numbers, and no more.

See `fake_cuda` for what the stand-in checks.
"""

import gc
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cris_deploy import Engine, TruncationWarning
from cris_deploy.errors import BackendError, ImageError, InputError
from cris_deploy.execution.backends import Device
from cris_deploy.execution.cuda import executor as device_executor
from cris_deploy.pixels.mask import KernelsBuild, KernelsStatus
from tests.stand_ins.fake_cuda import LEGACY
from tests.stand_ins.fake_kernels import ForeignArray, ForeignStream
from tests.stand_ins.fake_machine import BACKENDS, machine

__all__ = ["machine"]

# Same graphs in ONNX Runtime, other batch sizes: float32 sums in another order, of values up to 10.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = [(48, 80), (90, 40), (17, 31), (64, 64), (1, 1)]
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


@pytest.fixture(scope="module")
def reference(tiny_bundle):
    with Engine(tiny_bundle, backend="onnxruntime", device="cpu", threads=1) as engine:
        yield engine


def check(result, expected) -> None:
    assert result.expression == expected.expression
    assert result.truncated == expected.truncated
    assert result.logits.dtype == np.float32
    assert result.mask.dtype == np.bool_
    np.testing.assert_allclose(result.logits, expected.logits, atol=TOLERANCE)
    # A pixel may lie within TOLERANCE of the threshold.
    assert result.mask.shape == expected.mask.shape
    assert (result.mask != expected.mask).mean() < 0.01
    assert result.area == np.count_nonzero(result.mask)
    if result.area:
        rows, columns = np.nonzero(result.mask)
        bounds = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert result.box == bounds
    else:
        assert result.box is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("graphs", [True, False])
def test_numbers_of_the_cpu_engine(machine, images, reference, backend, graphs):
    with machine.engine(backend, cuda_graphs=graphs) as engine:
        assert engine.info.device is Device.CUDA
        assert engine.info.mask_device is Device.CUDA
        for _ in range(4):  # the first run, the captured one, replays
            for image in images:
                check(engine.segment(image, "a cat"), reference.segment(image, "a cat"))
        for count in (1, 2, 3, 8, 9, 20):
            expressions = [f"n{index % 13}" for index in range(count)]
            results = engine.segment(images[0], expressions)
            for result, expected in zip(
                results, reference.segment(images[0], expressions), strict=True
            ):
                check(result, expected)
        assert engine.segment(images[0], []) == []
        pairs = [(images[i % 5], f"n{i % 7}") for i in range(23)]
        for batch_size in (1, 4, 50):
            results = list(engine.stream(iter(pairs), batch_size=batch_size))
            for result, pair in zip(results, pairs, strict=True):
                check(result, reference.segment(*pair))
    machine.check()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("streams", [1, 3])
def test_many_threads(machine, images, reference, backend, streams):
    jobs = [(i, e) for i in range(5) for e in ("a", "b", "c", "d")] * 4

    def work(job):
        index, expression = job
        return job, engine.segment(images[index], [expression, "other"])

    # Small caches: features are made, used on other lanes, and freed, all the time.
    with (
        machine.engine(backend, streams=streams, image_cache=2, text_cache=2) as engine,
        ThreadPoolExecutor(8) as pool,
    ):
        for (index, expression), results in pool.map(work, jobs):
            check(results[0], reference.segment(images[index], expression))
            check(results[1], reference.segment(images[index], "other"))
    machine.check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_pixels_go_in_and_only_bits_come_out(machine, images, backend):
    with machine.engine(backend) as engine:
        engine.segment(images[0], ["a", "b"])
        machine.cuda.copies.clear()
        engine.segment(images[1], ["a", "b"])  # another image, known expressions
        height, width = images[1].shape[:2]
        inward = [size for direction, size in machine.cuda.copies if direction == "in"]
        assert inward == [64 * 64 * 3]
        outward = [size for direction, size in machine.cuda.copies if direction == "out"]
        masks, logits = outward
        assert logits == 2 * 16 * 16 * 4
        lines = -(-height * ((width + 7) // 8) // 256) * 256
        assert masks == 2 * lines + 2 * 5 * 8


def test_cuda_graphs_are_captured_once_and_bounded(machine, images, monkeypatch):
    from cris_deploy.execution.cuda import device

    monkeypatch.setattr(device, "_MOST_KEPT", 4)
    with machine.engine("tensorrt") as engine:
        for _ in range(5):
            engine.segment(images[0], "a")
        assert machine.cuda.calls.count("cuStreamBeginCapture") == 1  # the decoder's
        assert machine.tensorrt.contexts == 3
        for count in range(1, 8):
            for _ in range(3):
                engine.segment(images[0], [f"n{i}" for i in range(count)])
        assert 1 < len(machine.cuda.graphs) <= 4
        replays = machine.cuda.calls.count("cuGraphLaunch")
        assert replays > machine.cuda.calls.count("cuStreamBeginCapture")
    assert machine.cuda.graphs == {}
    machine.check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_dropped_for_another_shape_has_run(
    machine, images, reference, backend, monkeypatch
):
    from cris_deploy.execution.cuda import device

    monkeypatch.setattr(device, "_MOST_KEPT", 1)
    with machine.engine(backend) as engine:
        for image in images:
            check(engine.segment(image, "a"), reference.segment(image, "a"))
    machine.check()


def test_cuda_graphs_off(machine, images):
    with machine.engine("tensorrt", cuda_graphs=False) as engine:
        for _ in range(3):
            engine.segment(images[0], "a")
    assert "cuStreamBeginCapture" not in machine.cuda.calls


def test_what_cannot_be_captured_runs_and_says_so(machine, images, reference, caplog):
    machine.cuda.fail("cuStreamEndCapture", 901)
    with machine.engine("tensorrt") as engine, caplog.at_level(logging.WARNING):
        for _ in range(4):
            check(engine.segment(images[0], "a"), reference.segment(images[0], "a"))
    assert "runs without a CUDA graph" in caplog.text
    machine.rtx.capturable = False  # it compiles in the background: later, perhaps
    with machine.engine("tensorrt-rtx") as engine:
        for _ in range(3):
            check(engine.segment(images[0], "a"), reference.segment(images[0], "a"))
        assert machine.cuda.graphs == {}
        machine.rtx.capturable = True
        check(engine.segment(images[0], "a"), reference.segment(images[0], "a"))
        assert len(machine.cuda.graphs) == 1
    machine.check()


# Everything is given back


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_left_behind(machine, images, backend):
    engine = machine.engine(backend, image_cache=2)
    for image in images:
        engine.segment(image, ["a", "b", "c"])
    held = machine.cuda.device_bytes
    for _ in range(3):
        for image in images:
            engine.segment(image, ["a", "b", "c"])
    machine.cuda.finish_all()
    assert machine.cuda.device_bytes <= held  # no growth
    engine.close()
    del engine
    gc.collect()
    machine.cuda.finish_all()
    assert machine.cuda.live() == []
    assert machine.cuda.graphs == {}
    assert machine.cuda.events == {}
    assert machine.cuda.streams.keys() == {LEGACY}  # the default stream
    machine.check()


# Images and masks on the device


@pytest.mark.parametrize("backend", BACKENDS)
def test_device_image_to_device_mask(machine, images, reference, backend):
    stream = ForeignStream(machine.cuda)
    with machine.engine(backend) as engine:
        for image in images:
            expected = reference.segment(image, ["a", "b", "b"])
            given = ForeignArray(machine.cuda, image)
            for results in (
                engine.segment_on_device(given, ["a", "b", "b"], stream=stream),
                engine.segment_on_device(given, ("a", "b", "b")),
                engine.encode_device_image(given).segment_on_device(["a", "b", "b"]),
                engine.encode_image(image).segment_on_device(["a", "b", "b"], stream=stream.handle),
                [engine.segment_on_device(given, e, stream=stream) for e in "abb"],
            ):
                for result, wanted in zip(results, expected, strict=True):
                    assert result.mask.shape == image.shape[:2]
                    assert result.mask.dtype == np.bool_
                    check(result.to_host(), wanted)
            check(engine.encode_device_image(given).segment("a"), expected[0])
    machine.check()


def test_work_is_ordered_with_the_callers_stream(machine, images, reference):
    stream = ForeignStream(machine.cuda)
    cuda = machine.cuda
    with machine.engine("tensorrt") as engine:
        engine.segment(images[0], "a")
        given = ForeignArray(cuda, np.zeros_like(images[0]))
        # The image is made on the stream, late; and gone for other use right after the call.
        cuda.enqueue(stream.handle, lambda: cuda.array(given).__setitem__(..., images[0]))
        waits = cuda.calls.count("cuStreamSynchronize")
        result = engine.segment_on_device(given, "a", stream=stream)
        assert cuda.calls.count("cuStreamSynchronize") == waits  # nothing was waited for
        cuda.enqueue(stream.handle, lambda: cuda.array(given).fill(0))
        copy = []
        cuda.enqueue(stream.handle, lambda: copy.append(cuda.array(result.mask).copy()))
        expected = reference.segment(images[0], "a")
        for other in set(cuda.streams) - {stream.handle}:  # as if the caller's were the slowest
            cuda.finish(other)
        cuda.finish(stream.handle)
        np.testing.assert_array_equal(copy[0], expected.mask)
        # The same where only the image is given, and other work follows at once.
        cuda.enqueue(stream.handle, lambda: cuda.array(given).__setitem__(..., images[0]))
        scene = engine.encode_device_image(given, stream=stream)
        cuda.enqueue(stream.handle, lambda: cuda.array(given).fill(0))
        cuda.finish(stream.handle)
        check(scene.segment("a"), expected)
        # A result that is dropped while the stream still reads it stays until then.
        pending = engine.segment_on_device(ForeignArray(cuda, images[0]), "a", stream=stream)
        interface, owner = pending.mask.__cuda_array_interface__, pending
        seen = []

        class Kept:
            __cuda_array_interface__ = interface

        cuda.enqueue(stream.handle, lambda: seen.append(cuda.array(Kept).copy()))
        del pending, owner
        gc.collect()
        for _ in range(3):
            engine.segment(images[1], "b")
        cuda.finish(stream.handle)
        np.testing.assert_array_equal(seen[0], expected.mask)
    machine.check()


def test_a_warning_points_at_the_line_of_the_caller(machine, images):
    with machine.engine("tensorrt") as engine, pytest.warns(TruncationWarning) as caught:
        engine.segment_on_device(ForeignArray(machine.cuda, images[0]), "one two three four")
    assert [warning.filename for warning in caught] == [__file__]


def test_device_arguments(machine, images):
    with machine.engine("tensorrt") as engine:
        given = ForeignArray(machine.cuda, images[0])
        for bad in (images[0], None, "x.png"):
            with pytest.raises(ImageError, match="on a CUDA device"):
                engine.segment_on_device(bad, "a")
        with pytest.raises(ImageError, match=r"give \(H, W, 3\)"):
            engine.segment_on_device(ForeignArray(machine.cuda, images[0][:, :, 0].copy()), "a")
        for bad in ("s", -1, object()):
            with pytest.raises(InputError, match="stream"):
                engine.segment_on_device(given, "a", stream=bad)
        for protocol in (
            type("Torch", (), {"cuda_stream": 0}),
            type("CuPy", (), {"ptr": 0}),
            type("Core", (), {"__cuda_stream__": lambda self: (0, 0)})(),
        ):
            assert engine.segment_on_device(given, "a", stream=protocol).mask.shape == (48, 80)
    small = machine.engine("tensorrt", max_pixels=100)
    with pytest.raises(ImageError, match="limit"):
        small.segment_on_device(given, "a")
    on_cpu = Engine(machine.bundle, backend="openvino")
    with pytest.raises(BackendError, match="runs on cpu: make one with device='cuda'"):
        on_cpu.segment_on_device(given, "a")


# Kernels without CUDA


def test_mask_step_on_the_host_is_told(machine, images, reference, monkeypatch, caplog):
    status = KernelsStatus(KernelsBuild.BUILT, "fake", ())
    monkeypatch.setattr(device_executor.masks, "kernels_status", lambda: status)
    with caplog.at_level(logging.WARNING), machine.engine("tensorrt") as engine:
        assert engine.info.mask_device is Device.CPU
        assert "mask step runs on the CPU" in caplog.text
        assert "CRIS_CUDA=ON" in caplog.text
        for count in (1, 3):
            expressions = [f"n{i}" for i in range(count)]
            for result, expected in zip(
                engine.segment(images[0], expressions),
                reference.segment(images[0], expressions),
                strict=True,
            ):
                check(result, expected)
        with pytest.raises(BackendError, match="built without CUDA"):
            engine.segment_on_device(ForeignArray(machine.cuda, images[0]), "a")
    assert machine.kernels.upsampled == machine.kernels.letterboxed == 0
    machine.check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_threshold_and_probabilities_of_one_call(machine, backend, reference, images):
    image = images[0]
    with machine.engine(backend) as engine:
        for threshold in (0.1, 0.6):
            expected = reference.segment(image, ["a", "b"], threshold=threshold)
            found = engine.segment(image, ["a", "b"], threshold=threshold)
            device = engine.segment_on_device(
                ForeignArray(machine.cuda, image), ["a", "b"], threshold=threshold
            )
            for mine, other, theirs in zip(found, device, expected, strict=True):
                check(mine, theirs)
                assert mine.threshold == other.to_host().threshold == threshold
                np.testing.assert_array_equal(other.to_host().mask, mine.mask)
        mapped = engine.segment(image, "a", probabilities=True)
        assert mapped.probabilities.shape == image.shape[:2]
        np.testing.assert_array_equal(mapped.probabilities > mapped.threshold, mapped.mask)
