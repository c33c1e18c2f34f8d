"""The model `cris` of Triton Inference Server: its Python backend around an engine and its batcher.

`cris-export triton` writes a model repository whose `model.py` hands everything to `TritonModel`.

All tensors are numbers, text is UTF-8 in UINT8, and they go through DLPack: that is read by every
build of the Python backend. Builds that were compiled before NumPy 2 lose arrays that are given to
them as such, and end on BYTES (text) before any line of Python sees it; so `expressions` in BYTES
is in the repository only if it was asked for. The first dimension of every tensor is Triton's
batch, here always 1: requests are batched, by stage, by our own batcher.
"""

import ctypes
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from cris_deploy import documents
from cris_deploy.batcher import Batcher, BatchLimits
from cris_deploy.bundle.reading import Bundle
from cris_deploy.documents import Count, Positive
from cris_deploy.engine import Engine
from cris_deploy.errors import CrisError, EngineTimeoutError, InputError
from cris_deploy.execution.backends import AUTO
from cris_deploy.pixels.image import MAX_PIXELS
from cris_deploy.results.segmentation import Segmentation
from cris_deploy.serving.answers import refusal
from cris_deploy.serving.self_test import self_test

_log = logging.getLogger(__name__)

MODEL: Final = "cris"
BUNDLE: Final = "bundle"
"""Name of the bundle's folder beside model.py."""
_Seconds: TypeAlias = Annotated[float, Meta(gt=0, le=3600)]
_GRACE: Final = 1.0
"""Seconds beyond the timeout, within which the batcher says that it is over."""
# DLPack's name for a capsule whose tensor was taken. The pointer has to outlive all capsules.
_TAKEN: Final = ctypes.c_char_p(b"used_dltensor")


@dataclass(frozen=True, slots=True)
class TensorConfig:
    """A tensor of the model: Triton's type, and its shape behind the batch; -1 is any."""

    data_type: str
    dims: tuple[int, ...]
    optional: bool = True


INPUTS: Final[Mapping[str, TensorConfig]] = {
    "image": TensorConfig("TYPE_UINT8", (-1,)),
    "pixels": TensorConfig("TYPE_UINT8", (-1, -1, 3)),
    "text": TensorConfig("TYPE_UINT8", (-1,)),
    "threshold": TensorConfig("TYPE_FP32", (1,)),
}
"""An encoded file or (H, W, 3) RGB; expressions, one a line; a probability, 0 to 1."""
STRINGS: Final[Mapping[str, TensorConfig]] = {"expressions": TensorConfig("TYPE_STRING", (-1,))}
"""In place of `text`, where the Python backend can."""


@dataclass(frozen=True, slots=True)
class _Output:
    config: TensorConfig
    read: Callable[[Sequence[Segmentation]], NDArray[Any]]


def _stacked(found: Sequence[Segmentation]) -> NDArray[np.uint8]:
    return np.stack([result.mask for result in found]).view(np.uint8)


def _lines(found: Sequence[Segmentation]) -> NDArray[np.uint8]:
    # The letters of COCO's run lengths are from "0" to "o": none is a line break.
    text = "\n".join(result.rle()["counts"] for result in found)
    return np.frombuffer(bytearray(text, "ascii"), np.uint8)


_READ: Final[Mapping[str, _Output]] = {
    "masks": _Output(TensorConfig("TYPE_UINT8", (-1, -1, -1)), _stacked),
    "packed": _Output(
        TensorConfig("TYPE_UINT8", (-1, -1, -1)), lambda found: np.packbits(_stacked(found), axis=2)
    ),
    "rle": _Output(TensorConfig("TYPE_UINT8", (-1,)), _lines),
    "boxes": _Output(
        TensorConfig("TYPE_INT32", (-1, 4)),
        lambda found: np.array([r.box or (0, 0, 0, 0) for r in found], np.int32),
    ),
    "areas": _Output(
        TensorConfig("TYPE_INT64", (-1,)), lambda found: np.array([r.area for r in found], np.int64)
    ),
    "scores": _Output(
        TensorConfig("TYPE_FP32", (-1,)),
        lambda found: np.array([r.score for r in found], np.float32),
    ),
    "confidences": _Output(
        TensorConfig("TYPE_FP32", (-1,)),
        lambda found: np.array([r.confidence for r in found], np.float32),
    ),
    "truncated": _Output(
        TensorConfig("TYPE_UINT8", (-1,)),
        lambda found: np.array([r.truncated for r in found], np.uint8),
    ),
}
OUTPUTS: Final[Mapping[str, TensorConfig]] = {name: each.config for name, each in _READ.items()}
"""Of n expressions on an image (H, W), in their order.

masks (n, H, W) 0 and 1; packed (n, H, ceil(W / 8)), the same in bits, the first in the highest;
rle, n lines of COCO's compressed counts; boxes (n, 4) x0, y0, x1, y1, zeros for an empty mask;
areas, scores, confidences and truncated (n,).
"""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The `parameters` of the model's config.pbtxt; the first five as in `Engine`.

    `threads` 0 leaves it to the runtime. `timeout`: seconds that a request may take in the model.
    """

    backend: str = AUTO
    precision: str = AUTO
    threads: Count = 0
    streams: Positive = 1
    max_pixels: Positive = MAX_PIXELS
    timeout: _Seconds = 30.0
    max_expressions: Positive = 64
    max_characters: Positive = 1000


class TritonModel:
    """What `model.py` is made of.

    Args:
        backend: The module `triton_python_backend_utils`, which exists only inside of Triton.
        given: What Triton tells an instance: its config, its folder, its device.

    Raises:
        CrisError: the bundle or the device cannot be used, or the bundle's samples give other
            masks here than they should; the model is then not ready, and Triton logs why.
    """

    def __init__(self, backend: Any, given: Mapping[str, str]) -> None:
        config = json.loads(given["model_config"])
        self._settings: Final = read_settings(config.get("parameters", {}))
        self._backend = backend
        self._most = max(1, config["max_batch_size"])
        folder = f"{given['model_repository']}/{given['model_version']}/{BUNDLE}"
        bundle = Bundle.open(folder)
        settings = self._settings
        self._engine: Final = Engine(
            bundle,
            backend=settings.backend,
            device=_device(given),
            precision=settings.precision,
            threads=settings.threads or None,
            streams=settings.streams,
            max_pixels=settings.max_pixels,
            timeout=settings.timeout,
        )
        limits = BatchLimits.of(self._engine.info.device)
        # Triton hands over what waits: nothing is won by waiting again.
        limits = BatchLimits(limits.images, limits.pairs, waiting=max(limits.waiting, self._most))
        self._engine.warm_up(sorted({1, limits.images}), sorted({1, 2, limits.pairs}))
        self_test(self._engine, bundle)
        self._batcher: Final = Batcher(self._engine, limits)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer Triton's requests in their order, batched together; each has masks or an error."""
        pending = [self._guarded(self._submit, request) for request in requests]
        # The batcher ends what is late; only what hangs in a run takes longer.
        end = time.monotonic() + self._settings.timeout + _GRACE
        return [self._answer(*pair, end) for pair in zip(requests, pending, strict=True)]

    def close(self) -> None:
        """Let go of the engine."""
        self._batcher.close()
        self._engine.close()

    def _submit(self, request: Any) -> "Future[list[Segmentation]]":
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        expressions = read_expressions(tensors)
        settings = self._settings
        if len(expressions) > settings.max_expressions:
            raise InputError(
                f"{len(expressions)} expressions are given: give 1 to {settings.max_expressions}"
            )
        longest = max(map(len, expressions))
        if longest > settings.max_characters:
            raise InputError(
                f"an expression has {longest:,} characters: give at most "
                f"{settings.max_characters:,}"
            )
        threshold = tensors.get("threshold")
        return self._batcher.submit(
            read_image(tensors),
            expressions,
            timeout=settings.timeout,
            threshold=None if threshold is None else float(_array(threshold).item()),
        )

    def _answer(self, request: Any, pending: Any, end: float) -> Any:
        if not isinstance(pending, Future):
            return pending
        return self._guarded(lambda asked: self._written(asked, pending, end), request)

    def _written(self, request: Any, pending: "Future[list[Segmentation]]", end: float) -> Any:
        try:
            found = pending.result(max(0, end - time.monotonic()))
        except TimeoutError:  # the engine's own has the same base, and says more
            if pending.done():
                raise
            pending.cancel()
            seconds = self._settings.timeout
            raise EngineTimeoutError(f"no answer in {seconds:g} s: try again later") from None
        names = [name for name in _READ if name in set(request.requested_output_names())]
        outputs = [self._tensor(name, _READ[name].read(found)) for name in names]
        return self._backend.InferenceResponse(output_tensors=outputs)

    def _tensor(self, name: str, values: NDArray[Any]) -> Any:
        capsule = np.ascontiguousarray(values)[np.newaxis].__dlpack__()
        tensor = self._backend.Tensor.from_dlpack(name, capsule)
        # Triton gives a capsule that it took a name of its own, over which NumPy stumbles when it
        # drops it: a traceback for each tensor.
        ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), _TAKEN)
        return tensor

    def _guarded(self, action: Callable[[Any], Any], request: Any) -> Any:
        """Do it; an error becomes an answer, so that no request is left without one."""
        kinds = self._backend.TritonError
        try:
            return action(request)
        except CrisError as error:
            told = refusal(error)
            if told.status == 503:
                _log.exception("a request failed")
            code = kinds.INVALID_ARG if told.status == 422 else kinds.UNAVAILABLE
            sentence = told.sentence
        except Exception:
            _log.exception("a request failed")
            code, sentence = kinds.INTERNAL, "the model failed: its log says why"
        return self._backend.InferenceResponse(error=kinds(sentence, code))


def read_settings(parameters: Mapping[str, Mapping[str, str]]) -> ModelSettings:
    """Read the `parameters` of a config; InputError names the one that is unusable."""
    values = {name: _plain(value["string_value"]) for name, value in parameters.items()}
    where = "parameters of config.pbtxt"
    return documents.convert(ModelSettings, values, where, error=InputError)


def read_expressions(tensors: Mapping[str, Any]) -> list[str]:
    """Read `text` or `expressions`; InputError if there is not one of them."""
    if ("text" in tensors) == ("expressions" in tensors):
        offered = "text or expressions" if "expressions" in tensors else "text"
        raise InputError(f"expressions are missing or given twice: give {offered}")
    try:
        if "text" in tensors:
            return str(_row(tensors["text"]).tobytes(), "utf-8").split("\n")
        rows = tensors["expressions"].as_numpy()
        _require_one(rows, "expressions")
        return [str(word, "utf-8") for word in rows[0]]
    except UnicodeDecodeError:
        raise InputError("the expressions are not UTF-8: encode them so") from None


def read_image(tensors: Mapping[str, Any]) -> bytes | NDArray[np.uint8]:
    """Read `image` or `pixels`, as a copy; InputError if there is not one of them."""
    if ("image" in tensors) == ("pixels" in tensors):
        raise InputError("the image is missing or given twice: give image or pixels")
    if "image" in tensors:
        return _row(tensors["image"]).tobytes()
    return _row(tensors["pixels"]).copy()


def _row(tensor: Any) -> NDArray[Any]:
    array = _array(tensor)
    _require_one(array, tensor.name())
    row: NDArray[Any] = array[0]
    return row


def _array(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.from_dlpack(tensor)
    return array


def _require_one(array: NDArray[Any], name: str) -> None:
    if len(array) != 1:
        raise InputError(f"{name} has a batch of {len(array)}: give 1, a request for each image")


def _device(given: Mapping[str, str]) -> str:
    kind = given["model_instance_kind"]
    if kind == "GPU":
        return f"cuda:{given['model_instance_device_id']}"
    return "cpu" if kind == "CPU" else AUTO


def _plain(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
