"""The model `cris` in a real Triton server, asked by its own clients over HTTP and gRPC."""

import importlib.util
import logging
import os
import re
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from cris_bench.ways.triton_server import TritonServer
from cris_deploy import CrisError, Engine
from cris_deploy.errors import BackendError
from cris_deploy.pixels import image as images
from cris_deploy.serving.triton import OUTPUTS
from cris_export.triton.options import RepositoryOptions, StageKind
from cris_export.triton.repository import CLIENT, PROBE, write_repository
from tests.helpers import tiny_bundle as tiny
from tests.helpers.triton import SMALL, repository, serving

HTTP: Any = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
GRPC: Any = pytest.importorskip("tritonclient.grpc", reason="grpcio is not installed")
STAGE = Path(__file__).parents[2] / "data/triton_stage.py"
REQUESTS = int(os.environ.get("CRIS_TRITON_REQUESTS", "120"))
"""While an instance is killed; `docs/triton.md` has figures of more."""
WORDS = ["a b", "c d e f g h i j k l m n o p q r s t u v w x y z", "é"]


@pytest.fixture(scope="module")
def models(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    return repository(tiny_bundle, folder, StageKind.ONNXRUNTIME, instances=2)


@pytest.fixture(scope="module")
def triton(models: Path) -> Iterator[TritonServer]:
    with serving(models, models.with_name("log")) as running:
        yield running


@pytest.fixture(scope="module")
def client(models: Path) -> ModuleType:
    """What the repository gives to its users."""
    spec = importlib.util.spec_from_file_location("triton_client_of_ours", models / CLIENT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def url(triton: TritonServer, protocol: Any) -> str:
    return triton.http if protocol is HTTP else triton.grpc


def tensor(protocol: Any, name: str, values: Any, datatype: str = "UINT8") -> Any:
    given = protocol.InferInput(name, list(values.shape), datatype)
    given.set_data_from_numpy(values)
    return given


def text(protocol: Any, words: list[str]) -> Any:
    return tensor(protocol, "text", np.frombuffer("\n".join(words).encode(), np.uint8)[None])


def image(protocol: Any, data: bytes) -> Any:
    return tensor(protocol, "image", np.frombuffer(data, np.uint8)[None])


def check(answer: Any, expected: list[Any], batched: bool = False) -> None:
    """Every output is the engine's, bit for bit; of a batch the last digits may be others."""
    for name in ("scores", "confidences") if batched else ():
        values = [getattr(right, name.removesuffix("s")) for right in expected]
        np.testing.assert_allclose(answer.as_numpy(name), [values], rtol=1e-5)
    if batched:
        masks = answer.as_numpy("masks")
        assert masks.shape == (1, len(expected), *expected[0].mask.shape)
        assert np.mean(masks[0] != [right.mask for right in expected]) < 1e-3
        return
    masks = np.stack([right.mask for right in expected])
    np.testing.assert_array_equal(answer.as_numpy("masks"), masks[None])
    bits = np.unpackbits(answer.as_numpy("packed"), axis=-1, count=masks.shape[-1])
    np.testing.assert_array_equal(bits, masks[None])
    lines = answer.as_numpy("rle").tobytes().decode().split("\n")
    assert lines == [right.rle()["counts"] for right in expected]
    for name, values, dtype in (
        ("boxes", [right.box or (0, 0, 0, 0) for right in expected], np.int32),
        ("areas", [right.area for right in expected], np.int64),
        ("scores", [right.score for right in expected], np.float32),
        ("confidences", [right.confidence for right in expected], np.float32),
        ("truncated", [right.truncated for right in expected], np.uint8),
    ):
        found = answer.as_numpy(name)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.array([values], dtype))


@pytest.mark.parametrize("protocol", [HTTP, GRPC], ids=["http", "grpc"])
@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("threshold", [None, 0.6])
def test_answers_are_the_engine_s(
    triton: TritonServer,
    engine: Engine,
    picture: bytes,
    protocol: Any,
    encoded: bool,
    threshold: Any,
) -> None:
    inputs = [text(protocol, WORDS)]
    if encoded:
        inputs.append(image(protocol, picture))
    else:
        pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR_RGB)
        inputs.append(tensor(protocol, "pixels", pixels[None]))
    if threshold is not None:
        values = np.array([[threshold]], np.float32)
        inputs.append(tensor(protocol, "threshold", values, "FP32"))
    with protocol.InferenceServerClient(url(triton, protocol)) as connection:
        answer = connection.infer("cris", inputs, request_id="7")
    reached = None if threshold is None else float(np.float32(threshold))
    expected = engine.segment(picture, WORDS, threshold=reached)
    check(answer, expected)
    assert any(right.mask.any() for right in expected)
    assert [right.truncated for right in expected] == [False, True, False]


def test_only_what_is_asked_for_comes(triton: TritonServer, picture: bytes) -> None:
    with HTTP.InferenceServerClient(triton.http) as connection:
        answer = connection.infer(
            "cris",
            [image(HTTP, picture), text(HTTP, ["a"])],
            outputs=[HTTP.InferRequestedOutput("areas")],
        )
        assert [output["name"] for output in answer.get_response()["outputs"]] == ["areas"]
        metadata = connection.get_model_metadata("cris")
    assert {output["name"] for output in metadata["outputs"]} == set(OUTPUTS)


@pytest.mark.parametrize("protocol", [HTTP, GRPC], ids=["http", "grpc"])
@pytest.mark.parametrize(
    ("data", "words", "threshold"),
    [(None, ["a", ""], None), (b"text", ["a"], None), (b"", ["a"], None), (None, ["a"], 2.0)],
)
def test_errors_are_the_engine_s(
    triton: TritonServer,
    engine: Engine,
    picture: bytes,
    protocol: Any,
    data: bytes | None,
    words: list[str],
    threshold: float | None,
) -> None:
    data = picture if data is None else data
    with pytest.raises(CrisError) as expected:
        engine.segment(data, words, threshold=threshold)
    inputs = [image(protocol, data), text(protocol, words)]
    if threshold is not None:
        inputs.append(tensor(protocol, "threshold", np.array([[threshold]], np.float32), "FP32"))
    with (
        protocol.InferenceServerClient(url(triton, protocol)) as connection,
        pytest.raises(Exception, match=re.escape(str(expected.value))) as refused,
    ):
        connection.infer("cris", inputs)
    assert refused.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")


def raw(name: str, data: bytes, rows: int = 1) -> Any:
    return tensor(HTTP, name, np.frombuffer(data * rows, np.uint8).reshape(rows, -1))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([raw("text", b"a")], "give image or pixels"),
        ([raw("image", b"a")], "give text"),
        ([raw("image", b"a"), raw("text", b"\xff")], "not UTF-8"),
        ([raw("image", b"a"), raw("text", b"\n".join([b"a"] * 9))], "give 1 to 8"),
        ([raw("image", b"a"), raw("text", b"a" * 2000)], "at most 1,000"),
        ([raw("image", b"a", 2), raw("text", b"a", 2)], "a request for each image"),
    ],
)
def test_what_is_missing_or_too_much(
    triton: TritonServer, inputs: list[Any], sentence: str
) -> None:
    with (
        HTTP.InferenceServerClient(triton.http) as connection,
        pytest.raises(Exception, match=sentence) as refused,
    ):
        connection.infer("cris", inputs)
    assert refused.value.status() == "400"


def test_requests_of_many_clients_are_batched_and_answered_right(
    triton: TritonServer, engine: Engine
) -> None:
    def counted() -> list[float]:
        lines = httpx.get(f"http://{triton.metrics}/metrics").text.splitlines()
        starts = (
            f'nv_inference_{name}{{model="cris"' for name in ("request_success", "exec_count")
        )
        return [
            sum(float(line.split()[-1]) for line in lines if line.startswith(start))
            for start in starts
        ]

    sizes = [(30 + 7 * number, 40 + 3 * number) for number in range(4)]
    rng = np.random.default_rng(5)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]

    def ask(number: int) -> None:
        pixels, words = pictures[number % 4], WORDS[: 1 + number % 3]
        with HTTP.InferenceServerClient(triton.http) as connection:
            for _ in range(5):
                inputs = [tensor(HTTP, "pixels", pixels[None]), text(HTTP, words)]
                check(connection.infer("cris", inputs), engine.segment(pixels, words), batched=True)

    before = counted()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(12)))
    requests, runs = np.subtract(counted(), before)
    assert requests == 60
    assert runs < 60


def test_stages_are_refused_for_want_of_their_backend_alone(triton: TritonServer) -> None:
    """Triton reads a config, and what it says of an ensemble, before it looks for a backend."""
    with HTTP.InferenceServerClient(triton.http) as connection:
        for name in ("cris_image_encoder", "cris_text_encoder", "cris_mask_decoder"):
            with pytest.raises(
                Exception, match="unable to find backend library for backend 'onnxruntime'"
            ):
                connection.load_model(name)


def test_a_request_outlives_a_killed_instance(
    models: Path,
    triton: TritonServer,
    client: ModuleType,
    engine: Engine,
    picture: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The last test of this server: its instances are killed, and started again."""
    probe = (models / PROBE).read_text()
    address = f"http://{triton.http}/v2/models/cris/infer"
    assert httpx.post(address, content=probe, timeout=30).json()["outputs"][0]["name"] == "scores"
    stubs, asked, lock = triton.stubs(), 0, Lock()
    assert len(stubs) == 2
    expected = engine.segment(picture, "a b").area
    caplog.set_level(logging.INFO, "cris.triton")

    def ask(protocol: Any) -> int:
        nonlocal asked
        answered, asking = 0, client.Client([url(triton, protocol)], protocol, attempts=10)
        while True:
            with lock:
                if asked == REQUESTS:
                    return answered
                asked += 1
                if asked == REQUESTS // 6:
                    os.kill(stubs[0], signal.SIGKILL)
            found = asking.segment(picture, ["a b"], ["areas"])["areas"].tolist()
            answered += found == [expected]

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(ask, [HTTP, GRPC, HTTP, GRPC])) == REQUESTS
    print(f"{REQUESTS} requests answered, {len(caplog.records)} attempts failed")
    os.kill(stubs[1], signal.SIGKILL)
    # What Triton itself says of its health stays well; the probe that infers does not.
    assert httpx.post(address, content=probe, timeout=30).status_code >= 500
    assert httpx.get(f"http://{triton.http}/v2/health/live").status_code == 200
    with pytest.raises(Exception, match="not healthy"):
        client.Client([triton.http], HTTP, attempts=2).segment(picture, ["a b"])
    # Loading it once more mends it, if a file is newer: else Triton finds nothing to do.
    (models / "cris/1/model.py").touch()
    load = f"http://{triton.http}/v2/repository/models/cris/load"
    assert httpx.post(load, content="{}", timeout=60).status_code == 200
    assert len(set(triton.stubs()) - set(stubs)) == 2
    for _ in range(4):
        assert httpx.post(address, content=probe, timeout=30).status_code == 200


def test_the_ensemble_gives_the_engine_s_logits(
    tiny_bundle: Path, tmp_path: Path, engine: Engine
) -> None:
    """The configs but for one line: what runs a stage is here Python around its graph."""
    models = repository(tiny_bundle, tmp_path / "models", StageKind.ONNXRUNTIME)
    for name in ("cris_image_encoder", "cris_text_encoder", "cris_mask_decoder"):
        path = models / name / "config.pbtxt"
        config = path.read_text()
        assert 'platform: "onnxruntime_onnx"' in config
        path.write_text(config.replace('platform: "onnxruntime_onnx"', 'backend: "python"'))
        shutil.copy(STAGE, models / name / "1/model.py")
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (45, 70, 3), np.uint8) for _ in range(2)]
    squares = [images.letterbox(each, tiny.SIZE) for each in pictures]
    tokens = [prompt.tokens for prompt in engine.pipeline.read_expressions(["a b", "c"])]
    given = images.normalise_all(squares)
    with (
        serving(models, tmp_path / "log", "cris_network") as running,
        HTTP.InferenceServerClient(running.http) as connection,
    ):
        inputs = [
            tensor(HTTP, "image", given, "FP32"),
            tensor(HTTP, "tokens", np.stack(tokens), "INT64"),
        ]
        logits = connection.infer("cris_network", inputs).as_numpy("logits")
    for row, pixels, words in zip(logits, pictures, ["a b", "c"], strict=True):
        expected = engine.segment(pixels, words).logits
        # A batch may add the same sums up in another order.
        np.testing.assert_allclose(row[0], expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 1e-2


def test_too_many_requests_are_refused_at_once_and_worth_another_try(
    tiny_bundle: Path, tmp_path: Path, client: ModuleType
) -> None:
    options = RepositoryOptions(
        StageKind.NONE, max_batch=1, waiting=1, strings=True, settings=SMALL
    )
    write_repository(tiny_bundle, tmp_path / "models", options)
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    with serving(tmp_path / "models", tmp_path / "log") as triton:

        def ask(_: int) -> Any:
            with HTTP.InferenceServerClient(triton.http) as connection:
                inputs = [tensor(HTTP, "pixels", pixels[None]), text(HTTP, ["a", "b", "c"])]
                outputs = [HTTP.InferRequestedOutput("areas")]
                try:
                    connection.infer("cris", inputs, outputs=outputs)
                except HTTP.InferenceServerException as error:
                    return error
                return None

        with ThreadPoolExecutor(16) as pool:
            errors = [error for error in pool.map(ask, range(48)) if error is not None]
    assert 0 < len(errors) < 48
    for error in errors:
        assert "maximum queue size" in str(error)
        assert error.status() == "503"
        assert not client._is_ours(error)


def test_the_example_asks_once_if_the_request_is_at_fault(client: ModuleType) -> None:
    calls = []

    class Protocol:
        __name__ = "tritonclient.http"
        InferInput = HTTP.InferInput
        InferRequestedOutput = HTTP.InferRequestedOutput

        class InferenceServerClient:
            def __init__(self, address: str, **_: Any) -> None:
                self.address = address

            def infer(self, *_: Any, **__: Any) -> Any:
                calls.append(self.address)
                raise HTTP.InferenceServerException("no", "400" if self.address == "b" else "500")

    asked = client.Client(["a", "b", "c"], Protocol(), pause=0)
    with pytest.raises(HTTP.InferenceServerException):
        asked.segment(b"x", ["a"])
    assert calls == ["a", "b"]


def test_masks_other_than_they_were_keep_the_model_from_being_ready(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    models = repository(tiny_bundle, tmp_path / "models")
    bundle = models / "cris/1/bundle"
    tiny.change_weights(bundle, "project", np.negative)
    with (
        pytest.raises(BackendError, match="gives other masks here than FP32 PyTorch"),
        serving(models, tmp_path / "log"),
    ):
        pass
