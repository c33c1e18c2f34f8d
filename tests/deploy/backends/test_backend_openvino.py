"""OpenVINO against ONNX Runtime on the small bundle; its cache, its streams, its refusals."""

import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.bundle.manifest import GraphName, Precision
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError, InputError
from cris_deploy.execution.backends import Compute, Device

pytest.importorskip("openvino", reason="OpenVINO is not installed")
from cris_deploy.execution.backends import openvino as backend

EXPRESSIONS = ["a", "the man in red", "zebra crossing"]


@pytest.fixture
def image():
    return np.random.default_rng(3).integers(0, 256, (37, 51, 3), np.uint8)


@pytest.fixture
def expected(tiny_bundle, image):
    with Engine(tiny_bundle, backend="onnxruntime", device="cpu") as engine:
        return [r.logits for r in engine.segment(image, EXPRESSIONS)]


def check(results, expected):
    for result, logits in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.logits, logits, atol=1e-5 * np.abs(logits).max())


def test_same_logits_for_one_and_for_many(tiny_bundle, image, expected):
    with Engine(tiny_bundle, backend="openvino", precision="fp32") as engine:
        check(engine.segment(image, EXPRESSIONS), expected)
        check([engine.segment(image, EXPRESSIONS[1])], expected[1:2])
        pairs = [(image, text) for text in EXPRESSIONS] + [(image[:, ::-1], "a")]
        check(list(engine.stream(pairs, batch_size=4))[:3], expected)


def test_arithmetic_is_said_and_refused(tiny_bundle):
    possible = backend.computes(Precision.FP32, Device.CPU)
    assert possible[0] is Compute.FP32  # bfloat16 is never chosen, only asked for
    with Engine(tiny_bundle, backend="openvino") as engine:
        assert engine.info.compute == "fp32"
        assert "fp32 is this bundle's default here" in engine.info.reason
    with pytest.raises(BackendError, match=r"precision int8.*--int8 --calibration"):
        Engine(tiny_bundle, backend="openvino", precision="int8")
    with pytest.raises(BackendError, match="cannot compute on cuda"):
        Engine(tiny_bundle, backend="openvino", device="cuda")
    with pytest.raises(InputError, match="streams is 0"):
        Engine(tiny_bundle, backend="openvino", streams=0)
    with pytest.raises(BackendError, match="streams is 2: onnxruntime has none"):
        Engine(tiny_bundle, backend="onnxruntime", device="cpu", streams=2)


def test_bfloat16_where_the_processor_has_it(tiny_bundle, image, expected):
    if Compute.BF16 not in backend.computes(Precision.FP32, Device.CPU):
        with pytest.raises(BackendError, match="bfloat16"):
            Engine(tiny_bundle, backend="openvino", precision="bf16")
        return
    with Engine(tiny_bundle, backend="openvino", precision="bf16") as engine:
        assert engine.info.compute == "bf16"
        (result,) = engine.segment(image, EXPRESSIONS[:1])
    error = np.abs(result.logits - expected[0]).max() / np.abs(expected[0]).max()
    assert 1e-5 < error < 0.1  # 8 bits of mantissa: neither float32 nor nonsense


def test_streams_and_threads(tiny_bundle, image, expected):
    failures = []
    with Engine(tiny_bundle, backend="openvino", streams=2, threads=2, cache=False) as engine:
        assert engine.info.streams == 2

        def work():
            try:
                for _ in range(10):
                    check(engine.segment(image, EXPRESSIONS), expected)
            except AssertionError as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_compiled_graphs_are_kept_only_where_asked(
    tiny_bundle, image, expected, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(backend.CACHE_VARIABLE, raising=False)
    with Engine(tiny_bundle, backend="openvino") as engine:
        check(engine.segment(image, EXPRESSIONS), expected)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(backend.CACHE_VARIABLE, str(tmp_path))
    for _ in range(2):
        with Engine(tiny_bundle, backend="openvino") as engine:
            check(engine.segment(image, EXPRESSIONS), expected)
    # Three stages, and the text encoder for several expressions.
    assert len(list(tmp_path.rglob("*.blob"))) == 4


def test_what_was_compiled_in_another_arithmetic_is_not_taken(tiny_bundle, tmp_path, monkeypatch):
    # OpenVINO's own key forgets it: int8 with bfloat16 between got int8's graph, and wrong masks.
    monkeypatch.setenv("CRIS_DEPLOY_CACHE", str(tmp_path))
    bundle = Bundle.open(tiny_bundle)
    folders = {
        backend._cache_folder(bundle, GraphName.FULL, {"INFERENCE_PRECISION_HINT": hint, **more})
        for hint in ("f32", "bf16")
        for more in ({}, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0})
    }
    assert len(folders) == 4


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_cache_costs_a_compilation(
    tiny_bundle, image, expected, tmp_path, monkeypatch, damage
):
    monkeypatch.setenv(backend.CACHE_VARIABLE, str(tmp_path))
    Engine(tiny_bundle, backend="openvino").close()
    for blob in tmp_path.rglob("*.blob"):
        content = blob.read_bytes()
        blob.chmod(0o644)
        blob.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with Engine(tiny_bundle, backend="openvino") as engine:
        check(engine.segment(image, EXPRESSIONS), expected)


def test_a_run_that_fails_leaves_the_engine_usable(tiny_bundle, image, expected):
    with Engine(tiny_bundle, backend="openvino") as engine:
        specs = Bundle.open(tiny_bundle).manifest.graphs
        for name, graph in engine.pipeline.stages.items():
            for rows in (1, 2):
                with pytest.raises(BackendError, match="openvino failed"):
                    graph.run({t.name: np.zeros((rows, 1), np.float32) for t in specs[name].inputs})
        check(engine.segment(image, EXPRESSIONS), expected)


@pytest.fixture
def compilations(monkeypatch):
    """The number of rows of every graph that is compiled."""
    rows = []
    compile_graph = backend._OpenVino._compile

    def noted(self, model, spec, count, *others):
        rows.append(count)
        return compile_graph(self, model, spec, count, *others)

    monkeypatch.setattr(backend._OpenVino, "_compile", noted)
    return rows


def test_several_expressions_have_a_text_encoder_of_their_own(own_bundle, image, compilations):
    with Engine(own_bundle, backend="openvino", cache=False) as engine:
        alone = [engine.segment(image, text).logits for text in EXPRESSIONS]
        assert compilations == [1, 1, 1]
        shutil.rmtree(own_bundle)  # what it needs later, it has
        threads = [
            threading.Thread(target=engine.segment, args=(image, EXPRESSIONS)) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(engine.segment(image, EXPRESSIONS), alone)
        assert compilations == [1, 1, 1, -1]


def test_a_text_encoder_that_cannot_be_had_is_an_error(tiny_bundle, image, expected, monkeypatch):
    compile_graph = backend._OpenVino._compile

    def only_one(self, model, spec, rows, *others):
        if rows != 1:
            raise RuntimeError("no memory")
        return compile_graph(self, model, spec, rows, *others)

    with Engine(tiny_bundle, backend="openvino") as engine:
        with monkeypatch.context() as patched:
            patched.setattr(backend._OpenVino, "_compile", only_one)
            with pytest.raises(BackendError, match=r"cannot load text_encoder\.onnx: no memory"):
                engine.segment(image, EXPRESSIONS)
        check(engine.segment(image, EXPRESSIONS), expected)


ENGINES_COME_AND_GO = """
import os, signal, sys, threading
from cris_deploy import Engine

def engine():
    return Engine(sys.argv[1], backend="openvino")

first, second = engine(), engine()
del first, second
held = [engine()]
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


def test_signals_are_handled_after_engines_are_gone(tiny_bundle):
    """In a process of its own: with a core for each engine this is a segmentation fault."""
    program = [sys.executable, "-c", ENGINES_COME_AND_GO, str(tiny_bundle)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
