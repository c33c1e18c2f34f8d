"""The Open Inference Protocol (KServe's V2), with the binary tensor extension.

One model of two inputs: `image`, an encoded file as one BYTES element or pixels (H, W, 3) UINT8
RGB, and `expressions`, n BYTES. Outputs, n rows each: `masks` (n, H, W) BOOL, `rle` BYTES (COCO's
compressed counts), `boxes` (n, 4) INT64 (x0, y0, x1, y1; zeros for an empty mask), `areas` INT64,
`scores` FP32, `truncated` BOOL.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from cris_deploy import documents
from cris_deploy.errors import InputError
from cris_deploy.results.segmentation import Segmentation
from cris_deploy.serving.answers import Refused

MODEL: Final = "cris"
HEADER_LENGTH: Final = "inference-header-content-length"
SERVER: Final = {"name": "cris-serve", "version": "1", "extensions": ["binary_tensor_data"]}


@dataclass(frozen=True, slots=True)
class _Given:
    """An output: its type in the protocol, its shape, and how it is read off results."""

    datatype: str
    shape: list[int]
    read: Callable[[Sequence[Segmentation]], Any]


_OUTPUTS: Final[Mapping[str, _Given]] = {
    "masks": _Given("BOOL", [-1, -1, -1], lambda found: np.stack([r.mask for r in found])),
    "rle": _Given("BYTES", [-1], lambda found: [r.rle()["counts"].encode() for r in found]),
    "boxes": _Given(
        "INT64",
        [-1, 4],
        lambda found: np.array([r.box or (0, 0, 0, 0) for r in found], np.int64),
    ),
    "areas": _Given("INT64", [-1], lambda found: np.array([r.area for r in found], np.int64)),
    "scores": _Given("FP32", [-1], lambda found: np.array([r.score for r in found], np.float32)),
    "truncated": _Given(
        "BOOL", [-1], lambda found: np.array([r.truncated for r in found], np.bool_)
    ),
}
METADATA: Final = {
    "name": MODEL,
    "versions": ["1"],
    "platform": "cris_deploy",
    "inputs": [
        {"name": "image", "datatype": "BYTES", "shape": [1]},
        {"name": "expressions", "datatype": "BYTES", "shape": [-1]},
    ],
    "outputs": [
        {"name": name, "datatype": output.datatype, "shape": output.shape}
        for name, output in _OUTPUTS.items()
    ],
}
_MOST_HEADER: Final = 2**20
_Size = Annotated[int, Meta(ge=0, le=100_000_000)]


@dataclass(frozen=True, slots=True)
class _Input:
    name: str
    datatype: str
    shape: Annotated[tuple[_Size, ...], Meta(min_length=1, max_length=3)]
    data: list[Any] | None = None
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Output:
    name: str
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Header:
    inputs: tuple[_Input, ...]
    outputs: tuple[_Output, ...] = ()
    id: str = ""
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Inference:
    """What was asked: an encoded file or (H, W, 3) uint8, expressions, and which outputs.

    `outputs` says for each of them whether it is wanted as binary.
    """

    image: bytes | NDArray[np.uint8]
    expressions: list[str]
    outputs: Mapping[str, bool]
    id: str


def read_inference(body: bytes, header_length: str | None) -> Inference:
    """Read a request's body: JSON, and behind it the binary tensors, if there are any.

    Raises Refused (422) for what is not the protocol, or not this model's.
    """
    length = len(body)
    if header_length is not None:
        # No body has a length of more digits, and Python reads no number of thousands.
        wrong = not header_length.isdecimal() or len(header_length) > 12
        if wrong or int(header_length) > length:
            raise Refused(422, f"{HEADER_LENGTH} is no length within the body")
        length = int(header_length)
    if header_length is not None and length > _MOST_HEADER:
        raise Refused(413, f"the JSON before the tensors is longer than {_MOST_HEADER:,} bytes")
    try:
        header = documents.read(_Header, body[:length], "the request", error=InputError)
    except InputError as error:
        raise Refused(422, str(error)) from None
    rest = memoryview(body)[length:]
    tensors: dict[str, bytes | list[bytes] | NDArray[np.uint8]] = {}
    for tensor in header.inputs:
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            tensors[tensor.name] = _from_json(tensor)
            continue
        if type(size) is not int or not 0 <= size <= len(rest):
            raise Refused(422, f"{tensor.name[:40]}: binary_data_size is not what the body has")
        tensors[tensor.name] = _from_binary(tensor, rest[:size])
        rest = rest[size:]
    image, words = tensors.get("image"), tensors.get("expressions")
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if image is None or isinstance(image, list):
        raise Refused(422, "the input image is missing, or is not one")
    if not isinstance(words, list):
        raise Refused(422, "the input expressions is missing, or is not BYTES")
    try:
        expressions = [str(word, "utf-8") for word in words]
    except UnicodeDecodeError:
        raise Refused(422, "expressions is not UTF-8") from None
    return Inference(image, expressions, _wanted(header), header.id)


def _wanted(header: _Header) -> dict[str, bool]:
    binary = bool((header.parameters or {}).get("binary_data_output", False))
    if not header.outputs:
        return dict.fromkeys(_OUTPUTS, binary)
    for output in header.outputs:
        if output.name not in _OUTPUTS:
            raise Refused(422, f"output {output.name[:40]!r} is not one of {', '.join(_OUTPUTS)}")
    return {
        output.name: bool((output.parameters or {}).get("binary_data", binary))
        for output in header.outputs
    }


def _from_json(tensor: _Input) -> list[bytes] | NDArray[np.uint8]:
    if tensor.data is None:
        raise Refused(422, f"{tensor.name[:40]} has neither data nor binary_data_size")
    if tensor.datatype == "BYTES":
        flat = list(_flat(tensor.data))
        if not all(isinstance(item, str) for item in flat):
            raise Refused(422, f"{tensor.name[:40]} is BYTES: give strings, or binary data")
        return _counted(tensor, [item.encode() for item in flat])
    if tensor.datatype != "UINT8":
        raise _wrong_type(tensor)
    flat = list(_flat(tensor.data))
    if not all(type(item) is int and 0 <= item <= 255 for item in flat):
        raise Refused(422, f"{tensor.name[:40]} is UINT8: give integers from 0 to 255")
    return _shaped(tensor, np.array(flat, np.uint8))


def _from_binary(tensor: _Input, data: memoryview) -> list[bytes] | NDArray[np.uint8]:
    if tensor.datatype == "UINT8":
        return _shaped(tensor, np.frombuffer(data, np.uint8))
    if tensor.datatype != "BYTES":
        raise _wrong_type(tensor)
    found: list[bytes] = []
    while data:
        length = int.from_bytes(data[:4], "little")
        if len(data) < 4 + length:
            raise Refused(422, f"{tensor.name[:40]} is cut off")
        found.append(bytes(data[4 : 4 + length]))
        data = data[4 + length :]
    return _counted(tensor, found)


def _flat(data: list[Any]) -> Sequence[Any]:
    """Rows may be nested, or not."""
    flat: list[Any] = []
    stack = [iter(data)]
    while stack:
        for item in stack[-1]:
            if isinstance(item, list):
                stack.append(iter(item))
                break
            flat.append(item)
        else:
            stack.pop()
    return flat


def _counted(tensor: _Input, found: list[bytes]) -> list[bytes]:
    if len(found) != math.prod(tensor.shape):
        raise Refused(
            422, f"{tensor.name[:40]} has {len(found)} elements, its shape says otherwise"
        )
    return found


def _shaped(tensor: _Input, flat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if len(tensor.shape) != 3 or tensor.shape[2] != 3 or flat.size != math.prod(tensor.shape):
        raise Refused(422, f"{tensor.name[:40]} is UINT8: give (H, W, 3), and as many bytes")
    return flat.reshape(tensor.shape)


def _wrong_type(tensor: _Input) -> Refused:
    return Refused(422, f"{tensor.name[:40]} is {tensor.datatype[:20]}: give BYTES or UINT8")


def write_inference(asked: Inference, found: Sequence[Segmentation]) -> tuple[bytes, int | None]:
    """Give the body of an answer, and the length of its JSON if tensors follow it."""
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for name, binary in asked.outputs.items():
        given = _OUTPUTS[name]
        value = given.read(found)
        shape = [len(value)] if isinstance(value, list) else list(value.shape)
        output: dict[str, Any] = {"name": name, "datatype": given.datatype, "shape": shape}
        if not binary:
            output["data"] = (
                [item.decode() for item in value]
                if isinstance(value, list)
                else value.ravel().tolist()
            )
        else:
            if isinstance(value, list):
                blob = b"".join(len(item).to_bytes(4, "little") + item for item in value)
            else:
                blob = np.ascontiguousarray(value).tobytes()
            blobs.append(blob)
            output["parameters"] = {"binary_data_size": len(blob)}
        outputs.append(output)
    answer: dict[str, Any] = {"model_name": MODEL, "model_version": "1", "outputs": outputs}
    if asked.id:
        answer["id"] = asked.id
    header = json.dumps(answer).encode()
    return header + b"".join(blobs), len(header) if blobs else None
