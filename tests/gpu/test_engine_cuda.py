"""The engine on a GPU, by every backend that is installed, against the CPU engine."""

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.bundle.manifest import GraphName, Precision
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError
from cris_deploy.execution.backends import BackendName, Device
from cris_deploy.execution.backends.onnxruntime_cuda import PROVIDER
from cris_deploy.pixels.mask import kernels_status

pytestmark = pytest.mark.gpu

# float32: other kernels, other orders of sums. float16: the project's bound on the golden cases.
LOGITS = {Precision.FP32: 5e-3, Precision.FP16: 0.1, Precision.INT8: 1.5}
# Random weights leave large areas near the threshold; the tiny model's are smooth.
MEAN_IOU = {Precision.FP32: 0.99, Precision.FP16: 0.97, Precision.INT8: 0.5}

needs_kernels = pytest.mark.skipif(
    not kernels_status().cuda, reason="cris_deploy._kernels was built without CUDA"
)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    shapes = [(480, 640), (90, 40), (17, 31), (1080, 1920), (1, 1)]
    noise = [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in shapes]
    return [
        np.ascontiguousarray(np.resize(np.kron(tile, np.ones((16, 16, 1), np.uint8)), (*s, 3)))
        for tile, s in zip(noise, shapes, strict=True)
    ]


@pytest.fixture(scope="module")
def on_cpu(gpu_bundle):
    with Engine(gpu_bundle, device="cpu") as engine:
        yield engine


def compare(results, expected, precision: Precision) -> None:
    overlaps = []
    for result, wanted in zip(results, expected, strict=True):
        assert result.mask.shape == wanted.mask.shape
        assert np.abs(result.logits - wanted.logits).max() <= LOGITS[precision]
        both = np.count_nonzero(result.mask & wanted.mask)
        either = np.count_nonzero(result.mask | wanted.mask)
        overlaps.append(both / either if either else 1.0)
        assert result.area == np.count_nonzero(result.mask)
    assert np.mean(overlaps) >= MEAN_IOU[precision]


@pytest.mark.parametrize("graphs", [True, False])
def test_numbers_of_the_cpu_engine(make_engine, on_cpu, images, graphs):
    with make_engine(cuda_graphs=graphs) as engine:
        assert engine.info.device is Device.CUDA
        precision = engine.info.precision
        for _ in range(3):  # the first run, the captured one, a replay
            results = [engine.segment(image, "a dog") for image in images]
            compare(results, [on_cpu.segment(image, "a dog") for image in images], precision)
        for count in (1, 3, 8, 33):
            expressions = [f"thing {index}" for index in range(count)]
            results = engine.segment(images[0], expressions)
            compare(results, on_cpu.segment(images[0], expressions), precision)
        pairs = [(images[i % 5], f"n{i % 7}") for i in range(19)]
        results = list(engine.stream(iter(pairs), batch_size=6))
        compare(results, [on_cpu.segment(*pair) for pair in pairs], precision)


def test_cuda_graphs_change_nothing(make_engine, images):
    with make_engine() as captured, make_engine(cuda_graphs=False) as plain:
        expected = plain.segment(images[0], ["a", "b", "c"])
        for _ in range(4):
            for result, wanted in zip(
                captured.segment(images[0], ["a", "b", "c"]), expected, strict=True
            ):
                # The same kernels, unless a library timed and chose others for this session.
                np.testing.assert_allclose(result.logits, wanted.logits, atol=2e-2)


@pytest.mark.parametrize("streams", [1, 2])
def test_many_threads(make_engine, images, streams):
    jobs = [(i, e) for i in range(5) for e in ("a", "b", "c")] * 4
    with make_engine(streams=streams, image_cache=2, text_cache=2) as engine:
        expected = {(i, e): engine.segment(images[i], [e, "x"]) for i, e in dict.fromkeys(jobs)}

        def work(job):
            return job, engine.segment(images[job[0]], [job[1], "x"])

        with ThreadPoolExecutor(6) as pool:
            for job, results in pool.map(work, jobs):
                for result, wanted in zip(results, expected[job], strict=True):
                    np.testing.assert_allclose(result.logits, wanted.logits, atol=2e-2)


def onnxruntime_sessions(engine: Engine) -> list:
    """What ONNX Runtime has loaded for the lane that the last call used."""
    with engine.pipeline.stages[GraphName.IMAGE_ENCODER].device.lane() as lane:
        programs = [bound._program for bound in lane._kept.values()]
        return list(dict.fromkeys(program._session.session for program in programs))


def test_no_node_is_left_to_the_cpu(make_engine, images):
    with make_engine() as engine:
        if engine.info.backend is not BackendName.ONNXRUNTIME:
            pytest.skip("TensorRT has no CPU")
        engine.segment(images[0], ["a", "b", "c"])
        sessions = onnxruntime_sessions(engine)
        assert len(sessions) == 3  # one for each stage
        for session in sessions:
            assert session.get_providers()[0] == PROVIDER
            parts = session.get_provider_graph_assignment_info()
            assert {part.ep_name for part in parts} == {PROVIDER}


def take_all_memory(cuda, leave: int) -> list[int]:
    """Allocate the GPU's memory in ever smaller pieces."""
    taken: list[int] = []
    size = cuda.free_bytes()
    while size > 1 << 20:
        size = min(size, cuda.free_bytes() - leave)
        try:
            with cuda.on_device(0):
                taken.append(int(cuda.call("cuMemAlloc", max(size, 1))))
        except BackendError:
            size //= 2
    return taken


def test_out_of_memory_then_works(make_engine, images):
    from cris_deploy.execution.cuda.api import load_cuda

    cuda = load_cuda()

    def ask_for_more() -> None:
        for count in (16, 32, 64):  # batch sizes that have not been seen
            engine.segment(images[3], [f"n{count} {i}" for i in range(count)])

    with make_engine() as engine:
        expected = engine.segment(images[0], "a")
        taken = take_all_memory(cuda, leave=1 << 20)
        try:
            with pytest.raises(BackendError, match="out of memory"):
                ask_for_more()
        finally:
            for pointer in taken:
                with cuda.on_device(0):
                    cuda.call("cuMemFree", pointer)
        gc.collect()
        result = engine.segment(images[0], "a")
        np.testing.assert_allclose(result.logits, expected.logits, atol=2e-2)
        ask_for_more()


@needs_kernels
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_device_images_and_masks(make_engine, images, library):
    arrays = pytest.importorskip(library)
    if library == "torch":
        if not arrays.cuda.is_available():
            pytest.skip("this PyTorch has no CUDA")
        stream = arrays.cuda.Stream()
        scope = arrays.cuda.stream(stream)
        to_device = lambda a: arrays.from_numpy(a).cuda()  # noqa: E731
        to_host = lambda t: arrays.as_tensor(t, device="cuda").cpu().numpy()  # noqa: E731
    else:
        stream = arrays.cuda.Stream(non_blocking=True)
        scope = stream
        to_device = arrays.asarray
        to_host = lambda t: arrays.asnumpy(arrays.asarray(t))  # noqa: E731
    with make_engine() as engine:
        for image in images:
            expected = engine.segment(image, ["a", "b"])
            with scope:
                given = to_device(image)
                results = engine.segment_on_device(given, ["a", "b"], stream=stream)
                masks = [to_host(result.mask) for result in results]
            for mask, result, wanted in zip(masks, results, expected, strict=True):
                # The device's letterbox is within one level of OpenCV's.
                np.testing.assert_array_equal(mask, result.to_host().mask)
                np.testing.assert_array_equal(to_host(arrays.from_dlpack(result.mask)), mask)
                assert (mask != wanted.mask).mean() < 0.02
            again = engine.segment_on_device(to_device(image), "a")
            assert (again.to_host().mask != expected[0].mask).mean() < 0.02


@needs_kernels
def test_pycuda(make_engine, images):
    pytest.importorskip("pycuda", reason="pycuda is not installed")
    import pycuda.autoprimaryctx
    from pycuda import driver, gpuarray

    assert pycuda.autoprimaryctx.context is not None
    stream = driver.Stream()
    with make_engine() as engine:
        expected = engine.segment(images[0], "a")
        given = gpuarray.to_gpu_async(images[0], stream=stream)
        result = engine.segment_on_device(given, "a", stream=stream)
        stream.synchronize()
        assert (result.to_host().mask != expected.mask).mean() < 0.02


@needs_kernels
def test_the_mask_step_equals_the_cpus(make_engine, images):
    from cris_deploy.pixels.mask import upsample_masks

    with make_engine() as engine:
        model = Bundle.open(engine.info.bundle).manifest.model
        for image in images:
            result = engine.segment(image, "a")
            wanted = upsample_masks(
                result.logits[None], [image.shape[:2]], model.input_size, model.threshold
            )[0]
            np.testing.assert_array_equal(result.mask, wanted.mask)
            assert (result.area, result.box) == (wanted.area, wanted.box)


def test_memory_does_not_grow(make_engine, images):
    from cris_deploy.execution.cuda.api import load_cuda

    with make_engine(image_cache=2, text_cache=2) as engine:

        def round_trip() -> int:
            for image in images:
                engine.segment(image, ["a", "b", "c"])
            return load_cuda().free_bytes()

        for _ in range(3):
            before = round_trip()
        for _ in range(10):
            after = round_trip()
        assert before - after < 32 << 20
