"""TensorRT's plans: which is taken, which is refused and why. The runtime is a stand-in."""

import json

import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.bundle.manifest import Precision
from cris_deploy.bundle.plans import RuntimeName, folder
from cris_deploy.bundle.reading import MANIFEST, Bundle, GraphName
from cris_deploy.errors import BackendError
from cris_deploy.execution.backends import (
    CACHE_VARIABLE,
    BackendName,
    Device,
    tensorrt,
    tensorrt_runtime,
)
from cris_deploy.machine import gpu
from tests.helpers.plans import write_plans
from tests.stand_ins.fake_machine import machine
from tests.stand_ins.fake_tensorrt import GPU, VERSION

__all__ = ["machine"]

IMAGE = np.random.default_rng(3).integers(0, 256, (48, 80, 3), dtype=np.uint8)


def remove_plans(machine, pattern: str = "*") -> None:
    for path in folder(Bundle.open(machine.bundle)).glob(pattern):
        path.unlink()


def test_auto_takes_the_fastest_that_works(machine):
    for remove, backend in (
        (None, BackendName.TENSORRT),
        ("*.tensorrt.*", BackendName.TENSORRT_RTX),
        ("*.tensorrt-rtx.*", BackendName.ONNXRUNTIME),
    ):
        if remove is not None:
            remove_plans(machine, remove)
        with Engine(machine.bundle) as engine:
            assert (engine.info.backend, engine.info.device) == (backend, Device.CUDA)
    assert "tensorrt on cuda (bundle" in engine.info.reason
    assert "has no tensorrt plan of image_encoder" in engine.info.reason
    assert "tensorrt-rtx on cuda (bundle" in engine.info.reason


def test_info(machine):
    with machine.engine("tensorrt") as engine:
        assert engine.info.backend == "tensorrt"
        assert engine.info.compute == "fp32"


def test_arithmetic_is_what_the_plan_has():
    for precision in Precision:
        assert tensorrt.computes(precision, Device.CUDA) == (precision.value,)
    assert tensorrt.installed_devices() == tensorrt.DEVICES == (Device.CUDA,)


def test_no_cpu(machine):
    with pytest.raises(BackendError, match="take backend openvino"):
        Engine(machine.bundle, backend="tensorrt", device="cpu")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_no_plan(machine, backend):
    remove_plans(machine)
    with pytest.raises(
        BackendError, match=rf"has no {backend} plan of image_encoder.*cris-export build"
    ):
        machine.engine(backend)


def test_plan_of_another_version(machine):
    machine.tensorrt.__version__ = "10.14.1"
    with pytest.raises(
        BackendError,
        match=rf"wants tensorrt {VERSION}, here is 10\.14\.1.*cris-export build .* --engine",
    ):
        machine.engine("tensorrt")
    assert machine.tensorrt.loads == 0


def test_plan_of_another_gpu(machine, monkeypatch):
    survey = gpu.Survey((gpu.Gpu("Fake GPU 2000", "sm89", 1 << 30),), None)
    monkeypatch.setattr(gpu, "survey_gpus", lambda: survey)
    with pytest.raises(BackendError, match=r"wants sm86, here is Fake GPU 2000 \(sm89\)"):
        machine.engine("tensorrt")


def test_plan_that_the_runtime_refuses(machine):
    machine.tensorrt.refuse = "platform specific tag mismatch"
    with pytest.raises(
        BackendError,
        match=rf"refuses image_encoder\.tensorrt\.sm86\.plan, built with {VERSION} for sm86 "
        rf"\({GPU}\): platform specific tag mismatch: .*cris-export build",
    ) as caught:
        machine.engine("tensorrt")
    assert "only a warning" not in str(caught.value)


def test_version_compatible_plans_load_if_their_code_may_run(machine):
    remove_plans(machine)
    write_plans(machine.bundle, version_compatible=True)
    with pytest.raises(
        BackendError, match=r"machine code.*allow_plan_code=True\).* if you trust.*cris-export"
    ):
        machine.engine("tensorrt")
    assert machine.tensorrt.loads == 0
    with machine.engine("tensorrt", allow_plan_code=True) as engine:
        assert engine.segment(IMAGE, "a").mask.shape == IMAGE.shape[:2]
    # What is exact needs no such code, whatever is allowed.
    remove_plans(machine)
    write_plans(machine.bundle)
    machine.engine("tensorrt", allow_plan_code=True).close()
    assert machine.tensorrt.host_code_allowed[-3:] == [False] * 3


@pytest.mark.parametrize("method", ["deserialize_cuda_engine", "infer_shapes"])
def test_what_tensorrt_raises_is_ours_so_that_auto_goes_on(machine, method):
    machine.tensorrt.raises[method] = RuntimeError("it threw")
    if method == "infer_shapes":  # shapes are bound by the first run
        with machine.engine("tensorrt") as engine, pytest.raises(BackendError, match="it threw"):
            engine.segment(IMAGE, "a")
        return
    with pytest.raises(BackendError, match=r"image_encoder\.tensorrt\.sm86\.plan .*it threw"):
        machine.engine("tensorrt")
    machine.tensorrt.raises[method] = RuntimeError("it threw")
    with Engine(machine.bundle) as engine:
        assert engine.info.backend is BackendName.TENSORRT_RTX
        assert "it threw" in engine.info.reason
    machine.check()


def test_a_run_that_raises_empties_the_caches(machine):
    with machine.engine("tensorrt", cuda_graphs=False) as engine:
        expected = engine.segment(IMAGE, "a")
        machine.tensorrt.raises["execute_async_v3"] = RuntimeError("it threw")
        with pytest.raises(BackendError, match="failed to run: it threw"):
            engine.segment(IMAGE[:20], "b")
        assert [cache.kept for cache in engine.pipeline.caches] == [0, 0]
        np.testing.assert_allclose(engine.segment(IMAGE, "a").logits, expected.logits, atol=1e-4)
    machine.check()


def test_damaged_plan(machine):
    path = next(folder(Bundle.open(machine.bundle)).glob("mask_decoder.tensorrt.*.plan"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BackendError, match="is damaged"):
        machine.engine("tensorrt")
    path.write_bytes(content[:-1])
    with pytest.raises(BackendError, match="is damaged"):
        machine.engine("tensorrt")


def test_runtime_that_cannot_be_imported(machine, monkeypatch):
    class Nothing:
        @staticmethod
        def import_module(name):
            raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt_runtime, "importlib", Nothing)
    with pytest.raises(BackendError, match=r"libnvinfer.*cris-deploy\[tensorrt-rtx\]"):
        machine.engine("tensorrt-rtx")


def unlist(machine) -> None:
    path = machine.bundle / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "plans": {}}))


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_unlisted_plans_are_refused_and_never_loaded(machine, backend):
    unlist(machine)
    with pytest.raises(BackendError, match=r"is not listed in manifest\.json.*trust_plans=True"):
        machine.engine(backend)
    assert machine.tensorrt.loads == machine.rtx.loads == 0
    with machine.engine(backend, trust_plans=True) as engine:
        assert engine.info.backend == backend
        engine.segment(IMAGE, "a")


def test_auto_passes_unlisted_plans_over_and_says_why(machine):
    unlist(machine)
    with Engine(machine.bundle) as engine:
        assert (engine.info.backend, engine.info.device) == (BackendName.ONNXRUNTIME, Device.CUDA)
        assert "is not listed in manifest.json, and a plan is code" in engine.info.reason
        assert "Engine(trust_plans=True)" in engine.info.reason
    assert machine.tensorrt.loads == machine.rtx.loads == 0
    with Engine(machine.bundle, trust_plans=True) as engine:
        assert engine.info.backend == BackendName.TENSORRT


@pytest.mark.parametrize("most", [1, 3])
def test_batches_beyond_the_profile_are_split(machine, most):
    remove_plans(machine)
    write_plans(machine.bundle, RuntimeName.TENSORRT, most=most)
    expressions = [f"n{index}" for index in range(8)]
    with machine.engine("tensorrt") as engine, Engine(machine.bundle, device="cpu") as reference:
        expected = reference.segment(IMAGE, expressions)
        for result, wanted in zip(engine.segment(IMAGE, expressions), expected, strict=True):
            np.testing.assert_allclose(result.logits, wanted.logits, atol=1e-4)
        images = [np.roll(IMAGE, shift, axis=1) for shift in range(5)]
        for result, image in zip(
            engine.stream(((image, "a") for image in images), batch_size=5), images, strict=True
        ):
            np.testing.assert_allclose(
                result.logits, reference.segment(image, "a").logits, atol=1e-4
            )
    machine.check()


def test_graphs_run_from_host_to_host(machine):
    # What the parity gate does, stage by stage.
    with machine.engine("tensorrt") as engine, Engine(machine.bundle, device="cpu") as reference:
        rng = np.random.default_rng(0)
        inputs = {"image": rng.normal(size=(11, 3, 64, 64)).astype(np.float32)}
        stage = GraphName.IMAGE_ENCODER
        features = engine.pipeline.stages[stage].run(inputs)
        for name, value in reference.pipeline.stages[stage].run(inputs).items():
            np.testing.assert_allclose(features[name], value, atol=1e-4)
        with pytest.raises(BackendError, match="input image is float64"):
            engine.pipeline.stages[stage].run({"image": np.zeros((1, 3, 64, 64))})
        texts = engine.pipeline.stages[GraphName.TEXT_ENCODER].run(
            {"tokens": np.ones((11, 7), np.int64)}
        )
        stage = GraphName.MASK_DECODER
        for scene in (features, {name: value[:1] for name, value in features.items()}):
            logits = engine.pipeline.stages[stage].run({**texts, **scene})["logits"]
            wanted = reference.pipeline.stages[stage].run({**texts, **scene})["logits"]
            np.testing.assert_allclose(logits, wanted, atol=1e-4)
    machine.check()


def test_one_load_for_all_lanes_and_shapes(machine):
    with machine.engine("tensorrt", streams=2) as engine:
        for count in range(1, 6):
            engine.segment(IMAGE, [f"n{index}" for index in range(count)])
        assert machine.tensorrt.loads == 3


# TensorRT-RTX compiles for the shapes that come


def test_few_sets_of_shapes_serve_all_batches(machine):
    with machine.engine("tensorrt-rtx") as engine, Engine(machine.bundle, device="cpu") as other:
        for count in (1, 2, 3, 5, 6, 7, 8):
            expressions = [f"n{count} {index}" for index in range(count)]
            for ours, wanted in zip(
                engine.segment(IMAGE, expressions), other.segment(IMAGE, expressions), strict=True
            ):
                np.testing.assert_allclose(ours.logits, wanted.logits, atol=1e-4)
        pairs = [(np.roll(IMAGE, index), f"m{index}") for index in range(7)]
        for batch_size in (3, 5, 7):
            for ours, pair in zip(engine.stream(pairs, batch_size), pairs, strict=True):
                np.testing.assert_allclose(ours.logits, other.segment(*pair).logits, atol=1e-4)
    rows = {tuple(sorted((n, s[0]) for n, s in shapes.items())) for shapes in machine.rtx.compiled}
    assert {size for shapes in rows for _, size in shapes} == {1, 2, 4, 8}
    # The decoder: 1, 2, 4, 8 expressions on one image, and 2, 4, 8 pairs at most.
    assert sum(len(shapes) > 1 for shapes in rows) <= 7
    machine.check()


@pytest.mark.parametrize("most", [1, 3])
def test_padding_stays_within_the_profile(machine, most):
    remove_plans(machine)
    write_plans(machine.bundle, RuntimeName.TENSORRT_RTX, gpu=None, most=most)
    expressions = [f"n{index}" for index in range(8)]
    with machine.engine("tensorrt-rtx") as engine, Engine(machine.bundle, device="cpu") as other:
        for ours, wanted in zip(
            engine.segment(IMAGE, expressions), other.segment(IMAGE, expressions), strict=True
        ):
            np.testing.assert_allclose(ours.logits, wanted.logits, atol=1e-4)
    machine.check()


def test_compiled_kernels_are_kept_in_a_file(machine, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))

    def compiled() -> int:
        machine.rtx.compiled.clear()
        with machine.engine("tensorrt-rtx", streams=2) as engine:
            for _ in range(3):
                engine.segment(IMAGE, ["a", "b"])
        machine.check()
        return len(machine.rtx.compiled)

    assert compiled() == 3  # the stages
    files = sorted((tmp_path / "cache/tensorrt-rtx").iterdir())
    assert len(files) == 3
    assert compiled() == 0  # as in another process
    for file in files:
        file.write_bytes(b"broken")
    assert compiled() == 3
    assert compiled() == 0
    for file in files:
        file.unlink()
        file.mkdir()  # neither to be read nor to be written
    with caplog.at_level("WARNING"):
        assert compiled() == 3
    assert "cannot be read" in caplog.text
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize(
    ("backend", "version", "needed"),
    [("tensorrt", "10.12.0", "10.13"), ("tensorrt-rtx", "1.1.0.26", "1.2")],
)
def test_what_is_too_old_is_told(machine, backend, version, needed):
    (machine.tensorrt if backend == "tensorrt" else machine.rtx).__version__ = version
    with pytest.raises(
        BackendError, match=rf"version {version} is installed, at least {needed} is needed: run pip"
    ):
        machine.engine(backend)
