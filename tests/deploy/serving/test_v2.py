"""The Open Inference Protocol, spoken by Triton's own client."""

from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.serving import v2
from cris_deploy.serving.answers import Refused
from tests.helpers.server import Server

triton: Any = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
WORDS = ["a b", "c d e f g h i j k l m n o p q r s t u v w x y z", "é"]


def words_tensor(words: list[str], binary: bool = True) -> Any:
    tensor = triton.InferInput("expressions", [len(words)], "BYTES")
    tensor.set_data_from_numpy(
        np.array([w.encode() for w in words], np.object_), binary_data=binary
    )
    return tensor


@pytest.fixture
def client(server: Server) -> Any:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as opened:
        yield opened


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("cris")
    assert client.is_model_ready("cris", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("cris")
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["image", "expressions"]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("encoded", [True, False])
def test_answers_are_the_engine_s(
    client: Any, engine: Engine, picture: bytes, encoded: bool, binary: bool
) -> None:
    if encoded:
        image = triton.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([picture], np.object_))
    else:
        pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR_RGB)
        image = triton.InferInput("image", list(pixels.shape), "UINT8")
        image.set_data_from_numpy(pixels, binary_data=binary)
    names = ["masks", "rle", "boxes", "areas", "scores", "truncated"]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    answer = client.infer(
        "cris", [image, words_tensor(WORDS, binary)], outputs=outputs, request_id="7"
    )
    assert answer.get_response()["id"] == "7"
    expected = engine.segment(picture, WORDS)
    np.testing.assert_array_equal(answer.as_numpy("masks"), [right.mask for right in expected])
    counts = [c if isinstance(c, bytes) else c.encode() for c in answer.as_numpy("rle")]
    assert counts == [right.rle()["counts"].encode() for right in expected]
    np.testing.assert_array_equal(
        answer.as_numpy("boxes"), [right.box or (0, 0, 0, 0) for right in expected]
    )
    np.testing.assert_array_equal(answer.as_numpy("areas"), [right.area for right in expected])
    np.testing.assert_allclose(answer.as_numpy("scores"), [right.score for right in expected])
    assert answer.as_numpy("truncated").tolist() == [False, True, False]


def test_only_what_is_asked_for_comes(client: Any, picture: bytes) -> None:
    image = triton.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([picture], np.object_))
    answer = client.infer(
        "cris",
        [image, words_tensor(["a"])],
        model_version="1",
        outputs=[triton.InferRequestedOutput("areas")],
    )
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["areas"]


def test_errors_reach_the_client_as_sentences(client: Any) -> None:
    image = triton.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([b"text"], np.object_))
    with pytest.raises(Exception, match="not an image"):
        client.infer("cris", [image, words_tensor(["a"])])
    with pytest.raises(Exception, match="the only model is 'cris'"):
        client.infer("other", [image, words_tensor(["a"])])
    with pytest.raises(Exception, match="give 1 to 8"):
        client.infer("cris", [image, words_tensor(["a"] * 9)])


EXPRESSIONS = {"name": "expressions", "datatype": "BYTES", "shape": [1], "data": ["a"]}
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 3], "data": [1, 2, 3]}


def changed(tensor: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**tensor, **fields}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "image is missing"),
        ([IMAGE], "expressions is missing"),
        ([EXPRESSIONS], "image is missing"),
        ([changed(IMAGE, data=[1, 2]), EXPRESSIONS], "as many bytes"),
        ([changed(IMAGE, data=[1, 2, 256]), EXPRESSIONS], "0 to 255"),
        ([changed(IMAGE, data=[1, 2, True]), EXPRESSIONS], "0 to 255"),
        ([changed(IMAGE, shape=[3]), EXPRESSIONS], "H, W, 3"),
        ([changed(IMAGE, shape=[10**9, 1, 3]), EXPRESSIONS], "shape"),
        ([changed(IMAGE, datatype="FP32"), EXPRESSIONS], "give BYTES or UINT8"),
        ([IMAGE, changed(EXPRESSIONS, data=["a", "b"])], "its shape says otherwise"),
        ([IMAGE, changed(EXPRESSIONS, data=[1])], "give strings"),
        ([IMAGE, changed(EXPRESSIONS, data=None)], "neither data nor"),
        ([IMAGE, changed(EXPRESSIONS, parameters={"binary_data_size": 5})], "binary_data_size"),
        ([IMAGE, changed(EXPRESSIONS, parameters={"binary_data_size": -1})], "binary_data_size"),
        ([IMAGE, changed(EXPRESSIONS, parameters={"binary_data_size": 1.0})], "binary_data_size"),
    ],
)
def test_what_is_not_the_protocol(server: Server, inputs: list[Any], message: str) -> None:
    answer = httpx.post(f"{server.url}/v2/models/cris/infer", json={"inputs": inputs})
    assert answer.status_code == 422
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "length"),
    [
        *((b"{}", "3"), (b"{}", "-1"), (b"{}", "x"), (b"[]", None), (b"\xff", None)),
        *((b"{}", "1" * 40), (b"{}", "0" * 5000)),  # Python reads numbers of 4,300 digits at most
    ],
)
def test_bytes_that_are_none(body: bytes, length: str | None) -> None:
    with pytest.raises(Refused) as refused:
        v2.read_inference(body, length)
    assert refused.value.status == 422


def test_strings_that_are_cut_off() -> None:
    header = (
        b'{"inputs": [{"name": "expressions", "datatype": "BYTES", "shape": [1], '
        b'"parameters": {"binary_data_size": 6}}]}'
    )
    with pytest.raises(Refused, match="cut off"):
        v2.read_inference(header + (100).to_bytes(4, "little") + b"ab", str(len(header)))


def test_compressed_bodies_are_refused(server: Server) -> None:
    answer = httpx.post(
        f"{server.url}/v2/models/cris/infer", content=b"x", headers={"content-encoding": "gzip"}
    )
    assert answer.status_code == 415
