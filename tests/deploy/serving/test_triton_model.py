"""The model `cris` of Triton on a stand-in for its module, where the real server cannot go."""

import ctypes
import gc
import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cris_deploy import BundleError, Engine
from cris_deploy.errors import BackendError, BusyError, InputError
from cris_deploy.serving.triton import ModelSettings, TritonModel, read_settings
from cris_export.triton.options import StageKind
from tests.helpers.triton import repository
from tests.stand_ins import fake_triton as triton

WORDS = ["a\nb", "é"]


def given(models: Path, **changed: str) -> dict[str, str]:
    parameters = {"backend": {"string_value": "onnxruntime"}, "threads": {"string_value": "1"}}
    config = {"max_batch_size": 8, "parameters": parameters}
    return {
        "model_config": json.dumps(config),
        "model_repository": str(models / "cris"),
        "model_version": "1",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
        **changed,
    }


@pytest.fixture(scope="module")
def models(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository(tiny_bundle, tmp_path_factory.mktemp("model") / "models", StageKind.NONE)


@pytest.fixture(scope="module")
def model(models: Path) -> Iterator[TritonModel]:
    made = TritonModel(triton, given(models))
    yield made
    made.close()


def request(picture: bytes, wanted: tuple[str, ...] = ("areas",), **others: Any) -> triton.Request:
    tensors = {"image": np.frombuffer(bytearray(picture), np.uint8)[None], **others}
    return triton.Request([triton.Tensor(*item) for item in tensors.items()], list(wanted))


def text(words: str) -> Any:
    return np.frombuffer(bytearray(words, "utf-8"), np.uint8)[None]


def strings(words: list[str]) -> Any:
    return np.array([[word.encode() for word in words]], np.object_)


def test_expressions_in_bytes_may_have_line_breaks(
    model: TritonModel, engine: Engine, picture: bytes
) -> None:
    (answer,) = model.execute([request(picture, expressions=strings(WORDS))])
    assert answer.error is None
    expected = [[result.area for result in engine.segment(picture, WORDS)]]
    np.testing.assert_array_equal(answer.output_tensors[0].values, expected)
    both = request(picture, expressions=strings(WORDS), text=text("a"))
    (answer,) = model.execute([both])
    assert answer.error.code == triton.TritonError.INVALID_ARG
    assert "give text or expressions" in answer.error.sentence


def test_a_bad_request_spoils_no_other(model: TritonModel, engine: Engine, picture: bytes) -> None:
    good, bad = request(picture, text=text("a b")), request(b"none", text=text("a b"))
    first, second, third = model.execute([good, bad, good])
    expected = engine.segment(picture, "a b").area
    for answer in (first, third):
        assert answer.output_tensors[0].values.tolist() == [[expected]]
    assert second.error.code == triton.TritonError.INVALID_ARG
    assert not second.output_tensors


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (BusyError("try later"), triton.TritonError.UNAVAILABLE, "try later"),
        (BackendError("/secret/path broke"), triton.TritonError.UNAVAILABLE, "cannot answer now"),
        (InputError("give 1"), triton.TritonError.INVALID_ARG, "give 1"),
        (RuntimeError("at 0x7f"), triton.TritonError.INTERNAL, "its log says why"),
    ],
)
def test_each_error_is_an_answer(
    model: TritonModel,
    picture: bytes,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    sentence: str,
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(model._batcher, "submit", fails)
    first, second = model.execute([request(picture, text=text("a"))] * 2)
    for answer in (first, second):
        assert answer.error.code == code
        assert sentence in answer.error.sentence
        assert "secret" not in answer.error.sentence


def test_an_engine_that_hangs_is_an_error_in_time(
    models: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = json.loads(given(models)["model_config"])
    changed["parameters"]["timeout"] = {"string_value": "0.05"}
    model = TritonModel(triton, given(models, model_config=json.dumps(changed)))
    waits: list[float | None] = []

    class Hangs(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            waits.append(timeout)
            return super().result(timeout)

    try:
        monkeypatch.setattr(model._batcher, "submit", lambda *_, **__: Hangs())
        answers = model.execute([request(picture, text=text("a"))] * 3)
    finally:
        model.close()
    for answer in answers:
        assert answer.error.code == triton.TritonError.UNAVAILABLE
        assert "no answer in 0.05 s" in answer.error.sentence
    # One time for all that came together, not one after the other.
    assert waits[1:] == [0, 0]


def test_tensors_that_triton_took_go_without_a_word(
    model: TritonModel, picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capsule that is dropped under a name unknown to NumPy makes it print a traceback."""
    said: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", said.append)

    taken = ctypes.c_char_p(b"used_dlpack")
    real = triton.Tensor.from_dlpack

    def renames(name: str, capsule: Any) -> triton.Tensor:
        tensor = real(name, capsule)
        ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), taken)
        return tensor

    monkeypatch.setattr(triton.Tensor, "from_dlpack", staticmethod(renames))
    model.execute([request(picture, ("masks", "rle"), text=text("a"))])
    gc.collect()
    assert not said


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"threads": "-1"}, "threads is -1"),
        ({"threads": "many"}, 'threads is "many"'),
        ({"timeout": "0"}, "timeout is 0"),
        ({"thread": "1"}, "did you mean threads"),
    ],
)
def test_parameters_that_are_none(parameters: dict[str, str], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_settings({name: {"string_value": value} for name, value in parameters.items()})


def test_parameters_are_read_by_their_type() -> None:
    values = {"threads": "2", "timeout": "1.5", "backend": "openvino"}
    read = read_settings({name: {"string_value": value} for name, value in values.items()})
    assert read == ModelSettings(backend="openvino", threads=2, timeout=1.5)


def test_what_cannot_be_loaded(models: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        TritonModel(triton, given(models, model_repository=str(tmp_path)))
    with pytest.raises(BackendError, match="cuda"):
        TritonModel(triton, given(models, model_instance_kind="GPU"))
