"""What a graph's weights were when they were exported, tensor by tensor.

A file's hash says that something changed. To say which layer, the manifest holds the SHA-256 of
every weight's bytes, wherever they lie. The graphs are read here without onnx, which a machine that
serves does not have: an ONNX file is a protocol buffer, and few of its fields matter.
"""

import hashlib
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from cris_deploy.bundle.manifest import GraphName
from cris_deploy.bundle.protobuf import fields
from cris_deploy.errors import BundleError

_ORDER: Final = (
    GraphName.IMAGE_ENCODER,
    GraphName.TEXT_ENCODER,
    GraphName.MASK_DECODER,
    GraphName.FULL,
)
_Fingerprints: TypeAlias = Mapping[GraphName, Mapping[str, str]]

# onnx.proto: ModelProto.graph; GraphProto.node, .initializer; NodeProto.input, .name, .op_type
_GRAPH, _NODE, _INITIALIZER, _INPUT, _NODE_NAME, _OP_TYPE = 7, 1, 5, 1, 3, 4
# TensorProto.name, .external_data, and what holds values: typed fields, or raw_data
_NAME, _EXTERNAL, _VALUES = 8, 13, frozenset({4, 5, 6, 7, 9, 10, 11})


@dataclass(frozen=True, slots=True)
class ChangedWeight:
    """A weight that is not what was exported, and the first node that reads it ("" if none)."""

    graph: GraphName
    tensor: str
    layer: str

    def __str__(self) -> str:
        return f"{self.layer or 'no layer'} of {self.graph} ({self.tensor})"


def fingerprint(folder: Path, files: Mapping[GraphName, str]) -> dict[GraphName, dict[str, str]]:
    """Give graph -> name of a weight -> SHA-256 of its bytes.

    Args:
        folder: The bundle's.
        files: Graph -> its ONNX file.

    Raises:
        BundleError: a graph cannot be read, or its weights do not lie where it says.
    """
    with _Hasher(folder) as hasher:
        return {graph: _digests(folder / file, hasher)[1] for graph, file in files.items()}


def changed_weights(
    folder: Path, files: Mapping[GraphName, str], recorded: _Fingerprints
) -> tuple[ChangedWeight, ...]:
    """Compare the weights with what was recorded at export, the stages first.

    The full graph shares the stages' weights: what differs in a stage is not said again of it.
    Nothing is compared where nothing was recorded.

    Raises:
        BundleError: as `fingerprint`.
    """
    changed: list[ChangedWeight] = []
    said: set[str] = set()
    with _Hasher(folder) as hasher:
        for name in sorted(recorded, key=_ORDER.index):
            record = recorded[name]
            graph, found = _digests(folder / files[name], hasher)
            for tensor in (*found, *(record.keys() - found.keys())):
                digest = found.get(tensor, "")
                if digest != record.get(tensor) and not (name is GraphName.FULL and digest in said):
                    changed.append(ChangedWeight(name, tensor, graph.readers.get(tensor, "")))
                    said.add(digest)
    return tuple(changed)


@dataclass(frozen=True, slots=True)
class _Graph:
    """Name of a weight -> its TensorProto, and the first node that reads it."""

    tensors: Mapping[str, memoryview]
    readers: Mapping[str, str]


def _digests(path: Path, hasher: "_Hasher") -> tuple[_Graph, dict[str, str]]:
    """Read a graph and hash its weights, by their names; BundleError if it is no ONNX file."""
    try:
        graph = _read(path)
        return graph, {name: hasher.digest(tensor) for name, tensor in graph.tensors.items()}
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as ONNX ({error}): export it again") from None


def _read(path: Path) -> _Graph:
    (graph,) = _all(memoryview(path.read_bytes()), _GRAPH)
    tensors = {_text(tensor, _NAME): tensor for tensor in _all(graph, _INITIALIZER)}
    readers: dict[str, str] = {}
    for node in _all(graph, _NODE):
        layer = f"{_text(node, _OP_TYPE)} {_text(node, _NODE_NAME)}"
        for name in _all(node, _INPUT):
            readers.setdefault(str(name, "utf-8"), layer)
    return _Graph(tensors, readers)


class _Hasher:
    """Hashes weights; what several graphs share in a file of weights is hashed once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, mmap.mmap] = {}
        self._known: dict[tuple[str, int, int], str] = {}

    def __enter__(self) -> "_Hasher":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def digest(self, tensor: memoryview) -> str:
        external = {
            _text(entry, 1): _text(entry, 2)  # StringStringEntryProto.key, .value
            for entry in _all(tensor, _EXTERNAL)
        }
        if external:
            return self._external(external)
        inline = hashlib.sha256()
        for number, _, value in fields(tensor):
            if number in _VALUES:
                inline.update(value if isinstance(value, memoryview) else str(value).encode())
        return inline.hexdigest()

    def _external(self, place: Mapping[str, str]) -> str:
        try:
            name = place["location"]
            if Path(name).name != name:
                raise ValueError("it is no file of the bundle")
            file = self._open(name)
            offset = int(place.get("offset", "0"))
            length = int(place.get("length", str(len(file) - offset)))
            if offset < 0 or length < 0 or offset + length > len(file):
                raise ValueError(f"it has no {length} bytes from {offset} on")
        except (OSError, ValueError, KeyError) as error:
            raise BundleError(
                f"{self._folder}: a weight in {place.get('location')!r} cannot be read ({error}): "
                "export it again"
            ) from None
        key = (name, offset, length)
        if key not in self._known:
            with memoryview(file) as view, view[offset : offset + length] as part:
                self._known[key] = hashlib.sha256(part).hexdigest()
        return self._known[key]

    def _open(self, name: str) -> mmap.mmap:
        if name not in self._files:
            with (self._folder / name).open("rb") as stream:
                self._files[name] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._files[name]


def _all(message: memoryview, number: int) -> list[memoryview]:
    """All values of a field that holds strings or messages."""
    found = (field.value for field in fields(message) if field.number == number)
    return [value for value in found if isinstance(value, memoryview)]


def _text(message: memoryview, number: int) -> str:
    return "".join(str(value, "utf-8") for value in _all(message, number)[-1:])
