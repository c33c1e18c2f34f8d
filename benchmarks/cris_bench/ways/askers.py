"""Each way to ask: from an encoded picture and an expression to COCO's run lengths.

All give run lengths, box, area and score, which is what most clients want; masks as pixels would
add what their bytes cost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode

import numpy as np

from cris_deploy.batcher import Batcher
from cris_deploy.engine import Engine
from cris_deploy.errors import BackendError
from cris_deploy.results.segmentation import Segmentation

Ask: TypeAlias = Callable[[bytes, str], str]
"""A picture and an expression; the counts of the mask's run lengths."""
_OUTPUTS: Final = ("rle", "boxes", "areas", "scores")


@contextmanager
def in_process(engine: Engine) -> Iterator[Ask]:
    """Call `Engine.segment`."""
    yield lambda picture, words: _described(engine.segment(picture, words))


@contextmanager
def batched(engine: Engine) -> Iterator[Ask]:
    """Call `Batcher.submit` and wait."""
    with Batcher(engine) as batcher:
        yield lambda picture, words: _described(batcher.submit(picture, words).result()[0])


@contextmanager
def rest(address: str) -> Iterator[Ask]:
    """POST /v1/segment of cris-serve, or of its app in Ray Serve, over one connection.

    A plain client: what a comfortable one costs is not the server's.
    """
    with closing(HTTPConnection(address)) as client:

        def ask(picture: bytes, words: str) -> str:
            path = f"/v1/segment?{urlencode({'expression': words})}"
            client.request("POST", path, picture, {"Content-Type": "image/jpeg"})
            answer = client.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise BackendError(f"{address} answers {answer.status}: {body[:200]!r}")
            return str(json.loads(body)["results"][0]["rle"]["counts"])

        yield ask


@contextmanager
def open_inference(address: str) -> Iterator[Ask]:
    """Ask cris-serve by Triton's client, with binary tensors: BYTES, as cris-serve has them."""
    import tritonclient.http as protocol

    wanted = [protocol.InferRequestedOutput(name, binary_data=True) for name in _OUTPUTS]
    with protocol.InferenceServerClient(address) as client:

        def ask(picture: bytes, words: str) -> str:
            inputs = []
            for name, value in (("image", picture), ("expressions", words.encode())):
                tensor = protocol.InferInput(name, [1], "BYTES")
                inputs.append(tensor.set_data_from_numpy(np.array([value], np.object_)))
            answer = client.infer("cris", inputs, outputs=wanted)
            return str(answer.as_numpy("rle")[0], "ascii")

        yield ask


@contextmanager
def triton(address: str, protocol: Any) -> Iterator[Ask]:
    """Ask Triton; `protocol` is the module tritonclient.http or tritonclient.grpc."""
    wanted = [protocol.InferRequestedOutput(name) for name in _OUTPUTS]
    with protocol.InferenceServerClient(address) as client:

        def ask(picture: bytes, words: str) -> str:
            inputs = []
            for name, value in (("image", picture), ("text", words.encode())):
                tensor = protocol.InferInput(name, [1, len(value)], "UINT8")
                given = np.frombuffer(value, np.uint8)[np.newaxis]
                inputs.append(tensor.set_data_from_numpy(given))
            answer = client.infer("cris", inputs, outputs=wanted)
            return str(answer.as_numpy("rle").tobytes(), "ascii")

        yield ask


def _described(result: Segmentation) -> str:
    """What an answer of a server holds, made here, too."""
    return str(result.to_json()["rle"]["counts"])
