"""A bundle that is replaced under a running engine: its own masks, or an error, never a mixture."""

import os
import shutil
import threading

import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.bundle.reading import MANIFEST, WEIGHTS, Bundle, GraphName
from cris_deploy.errors import BundleError
from cris_deploy.execution.backends import BackendName, load_graphs, onnxruntime, status
from cris_export.write import BundleWriter
from tests.helpers import tiny_bundle as tiny
from tests.stand_ins.fake_machine import machine

__all__ = ["machine"]

IMAGE = np.random.default_rng(3).integers(0, 256, (48, 80, 3), dtype=np.uint8)
EXPRESSIONS = ["a", "man", "zebra"]
HERE = [
    name
    for name in (BackendName.ONNXRUNTIME, BackendName.OPENVINO)
    if status(name).version is not None
]


def replace(bundle) -> None:
    """Put a bundle of other weights in its place, as an export does."""
    with BundleWriter(bundle) as writer:
        manifest = writer.write_manifest(tiny.fill(writer.directory))
        tiny.change_weights(writer.directory, "embedding", lambda value: 2 * value + 1)
        writer.write_manifest(manifest)
        writer.commit()


def overwrite(bundle) -> None:
    """Write other weights into the file there is, as copying over it does."""
    other = np.fromfile(bundle / WEIGHTS, np.float32) * 2 + 1
    with (bundle / WEIGHTS).open("r+b") as stream:
        stream.write(other.tobytes())


def masks(engine, texts) -> np.ndarray:
    return np.array([engine.segment(IMAGE, text).logits for text in texts])


@pytest.mark.parametrize("backend", HERE)
def test_a_running_engine_keeps_its_bundle(own_bundle, backend):
    with Engine(own_bundle, backend=backend, device="cpu", cache=False) as engine:
        before = masks(engine, EXPRESSIONS)
        replace(own_bundle)
        with Engine(own_bundle, backend=backend, device="cpu") as other:
            assert np.abs(masks(other, EXPRESSIONS) - before).max() > 0.1
        np.testing.assert_array_equal(masks(engine, EXPRESSIONS), before)
        # OpenVINO compiles a text encoder for several expressions only now.
        together = [result.logits for result in engine.segment(IMAGE, EXPRESSIONS)]
        np.testing.assert_allclose(together, before, atol=1e-4)
        shutil.rmtree(own_bundle)
        np.testing.assert_array_equal(masks(engine, EXPRESSIONS), before)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("several", [False, True])
def test_weights_that_are_written_into_are_noticed(own_bundle, backend, several):
    with Engine(own_bundle, backend=backend, device="cpu", cache=False) as engine:
        before = masks(engine, EXPRESSIONS)
        content = (own_bundle / WEIGHTS).read_bytes()
        os.utime(own_bundle / WEIGHTS)
        np.testing.assert_array_equal(masks(engine, EXPRESSIONS), before)  # nothing was changed
        overwrite(own_bundle)
        for _ in range(2):
            with pytest.raises(
                BundleError, match=r"weights.bin is not what was opened.*new Engine"
            ):
                engine.segment(IMAGE, EXPRESSIONS if several else "a")
        with (own_bundle / WEIGHTS).open("r+b") as stream:
            stream.write(content)
        np.testing.assert_array_equal(masks(engine, EXPRESSIONS), before)  # put back


@pytest.mark.parametrize("change", [replace, overwrite, shutil.rmtree])
@pytest.mark.parametrize("loaded", [0, 1, 3])
def test_a_change_while_graphs_are_loaded(own_bundle, monkeypatch, change, loaded):
    opened = Bundle.open(own_bundle)
    load, calls = onnxruntime._OnnxRuntime.load, []

    def changing(self, bundle, name):
        if len(calls) == loaded:
            change(own_bundle)
        calls.append(name)
        graph = load(self, bundle, name)
        if len(calls) == loaded == 3:
            change(own_bundle)
        return graph

    monkeypatch.setattr(onnxruntime._OnnxRuntime, "load", changing)
    stages = [name for name in GraphName if name is not GraphName.FULL]
    with pytest.raises(BundleError, match="is not what was opened, so the bundle was changed"):
        load_graphs(opened, stages, "onnxruntime")


@pytest.mark.parametrize("change", [replace, overwrite, shutil.rmtree])
def test_sessions_that_onnxruntime_makes_later_are_of_the_same_bundle(machine, change):
    with machine.engine("onnxruntime", cache=False, streams=2) as engine:
        before = [result.logits for result in engine.segment(IMAGE, EXPRESSIONS[:1])]
        device = engine.pipeline.stages[GraphName.IMAGE_ENCODER].device
        change(machine.bundle)
        with (
            device.lane(),  # the one that has its sessions: the other has to make its own
            pytest.raises(BundleError, match=r"is not what was opened.*make a new Engine"),
        ):
            engine.segment(IMAGE, EXPRESSIONS)
        if change is not overwrite:  # the stand-in's weights are mapped, a GPU's are copies
            again = [result.logits for result in engine.segment(IMAGE, EXPRESSIONS[:1])]
            np.testing.assert_allclose(again, before, atol=1e-4)


def test_a_plan_that_is_loaded_again_is_of_the_same_bundle(machine):
    engine = machine.engine("tensorrt")
    plan = engine.pipeline.stages[GraphName.IMAGE_ENCODER]._binder._plan
    replace(machine.bundle)
    with pytest.raises(BundleError, match=r"is not what was opened.*make a new Engine"):
        plan._load()
    engine.close()


def test_many_threads_while_the_bundle_is_replaced(own_bundle):
    with Engine(own_bundle, device="cpu", cache=False) as engine:
        before = masks(engine, EXPRESSIONS)
        stop, wrong = threading.Event(), []

        def work() -> None:
            while not stop.is_set():
                found = [result.logits for result in engine.segment(IMAGE, EXPRESSIONS)]
                if np.abs(found - before).max() > 1e-4:
                    wrong.append(found)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            replace(own_bundle)
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
    assert (own_bundle / MANIFEST).is_file()
