"""Opening an engine, choosing a backend, closing; options and bundles that cannot be used."""

import logging
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from cris_deploy import Engine
from cris_deploy.errors import BackendError, BundleError, ImageError, InputError
from cris_deploy.execution.backends import Device
from tests.helpers import tiny_bundle as tiny


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


def test_bundle_path_as_text(tiny_bundle):
    assert Engine(str(tiny_bundle)).info.bundle == Path(tiny_bundle)
