"""The bundle's manifest: its schema as frozen dataclasses, read with checks, written as JSON.

Reading names the field that is wrong; keys that this version does not know are ignored, so that a
format number has to change only when old readers would go wrong.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar

from cris_deploy.errors import BundleError

FORMAT: Final = 1
"""Version of the bundle format that this package writes, and the newest that it reads."""

_T = TypeVar("_T")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class GraphName(StrEnum):
    """The graphs of a bundle: the whole model, and its three stages."""

    FULL = "full"
    IMAGE_ENCODER = "image_encoder"
    TEXT_ENCODER = "text_encoder"
    MASK_DECODER = "mask_decoder"


class Precision(StrEnum):
    """Type of a bundle's weights and graphs: INT8 has pairs of QuantizeLinear, DequantizeLinear."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class DType(StrEnum):
    """Element type of a graph's input or output; the values are numpy's names."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT64 = "int64"
    BOOL = "bool"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a graph; a str in `shape` is a dimension chosen at run time."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One ONNX file of the bundle and its interface."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the checkpoint is; the runtime needs the sizes, the word length and the threshold."""

    architecture: str
    input_size: int
    mask_size: int
    word_len: int
    context_length: int
    threshold: float
    decoder_layers: int
    contrastive: bool
    parameters: int
    checkpoint_sha256: str


@dataclass(frozen=True, slots=True)
class Sample:
    """An image (`height` x `width` pixels), an expression, and the FP32 model's logits (npy)."""

    image: str
    expression: str
    logits: str
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Parity:
    """Exported graph against FP32 PyTorch on the samples: mask IoU and absolute logit error."""

    min_iou: float
    mean_iou: float
    worst_iou: float
    max_logit_error: float
    passed: bool


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Hash and size of a file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a bundle says about itself. `files` covers all files but the manifest.

    File names are relative POSIX paths inside the bundle. `created` is UTC, ISO 8601.
    """

    model: ModelFacts
    precision: Precision
    opset: int
    graphs: Mapping[GraphName, GraphSpec]
    versions: Mapping[str, str]
    samples: tuple[Sample, ...]
    parity: Parity | None
    created: str
    files: Mapping[str, FileRecord]
    format: int = FORMAT

    def to_json(self) -> str:
        """Write as the text of manifest.json."""
        document = dataclasses.asdict(self)
        # Hardware-specific engines have their place in the format, and none exists yet.
        document = {"format": self.format, "engines": [], **document}
        return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "Manifest":
        """Read the text of a manifest.json; BundleError names `where` and the field."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"{where} is not valid JSON ({error}): export the bundle again"
            ) from None
        return _read_manifest(_Field(document, where, ""))


@dataclass(frozen=True, slots=True)
class _Field:
    """A JSON value with its place in the document, for error messages."""

    value: Any
    where: str
    path: str

    def wrong(self, expected: str) -> BundleError:
        found = json.dumps(self.value, ensure_ascii=False)
        found = found if len(found) <= 60 else found[:57] + "..."
        return BundleError(
            f"{self.where}: {self.path or 'the document'} is {found}, expected {expected}: "
            "export the bundle again"
        )

    def __getitem__(self, key: str) -> "_Field":
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        path = f"{self.path}.{key}" if self.path else key
        if key not in self.value:
            raise BundleError(f"{self.where}: {path} is missing: export the bundle again")
        return _Field(self.value[key], self.where, path)

    def items(self) -> list[tuple[str, "_Field"]]:
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return [(key, self[key]) for key in self.value]

    def each(self, read: Callable[["_Field"], _T]) -> tuple[_T, ...]:
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return tuple(
            read(_Field(value, self.where, f"{self.path}[{index}]"))
            for index, value in enumerate(self.value)
        )

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def integer(self, minimum: int = 0) -> int:
        if type(self.value) is not int or self.value < minimum:  # bool is an int, too
            raise self.wrong(f"an integer of at least {minimum}")
        return self.value

    def number(self, low: float, high: float) -> float:
        if type(self.value) not in (int, float) or not low <= self.value <= high:  # NaN fails
            raise self.wrong(f"a number from {low:g} to {high:g}")
        return float(self.value)

    def boolean(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def sha256(self) -> str:
        if not _SHA256.fullmatch(self.text()):
            raise self.wrong("64 hexadecimal digits")
        return self.text()

    def file_name(self) -> str:
        """A name that stays inside the bundle on every system."""
        name = self.text()
        path = PurePosixPath(name)
        inside = (
            name == path.as_posix()
            and not path.is_absolute()
            and name != "."
            and ".." not in path.parts
            and not set(name) & set("\\:\0")
        )
        if not inside:
            raise self.wrong("a relative path inside the bundle")
        return name

    def one_of(self, enum: type[_T]) -> _T:
        values = [str(member.value) for member in enum]  # type: ignore[attr-defined]
        if self.value not in values:
            raise self.wrong(" or ".join(values))
        return enum(self.value)  # type: ignore[call-arg]


def _read_manifest(root: _Field) -> Manifest:
    version = root["format"].integer(1)
    if version > FORMAT:
        raise BundleError(
            f"{root.where}: the bundle has format {version}, this cris-deploy reads up to "
            f"{FORMAT}: upgrade cris-deploy (pip install -U cris-deploy)"
        )
    files = {
        _Field(name, root.where, "files").file_name(): FileRecord(
            record["sha256"].sha256(), record["bytes"].integer()
        )
        for name, record in root["files"].items()
    }

    def listed(field: _Field) -> str:
        if field.file_name() not in files:
            raise field.wrong("a file that 'files' lists")
        return field.file_name()

    parity = root["parity"]
    return Manifest(
        format=version,
        model=_read_model(root["model"]),
        precision=root["precision"].one_of(Precision),
        opset=root["opset"].integer(1),
        graphs={
            name: GraphSpec(
                listed(root["graphs"][name]["file"]),
                root["graphs"][name]["inputs"].each(_read_tensor),
                root["graphs"][name]["outputs"].each(_read_tensor),
            )
            for name in GraphName
        },
        versions={name: version.text() for name, version in root["versions"].items()},
        samples=root["samples"].each(
            lambda sample: Sample(
                listed(sample["image"]),
                sample["expression"].text(),
                listed(sample["logits"]),
                sample["height"].integer(1),
                sample["width"].integer(1),
            )
        ),
        parity=None if parity.value is None else _read_parity(parity),
        created=root["created"].text(),
        files=files,
    )


def _read_model(model: _Field) -> ModelFacts:
    return ModelFacts(
        architecture=model["architecture"].text(),
        input_size=model["input_size"].integer(1),
        mask_size=model["mask_size"].integer(1),
        word_len=model["word_len"].integer(3),
        context_length=model["context_length"].integer(3),
        threshold=model["threshold"].number(0, 1),
        decoder_layers=model["decoder_layers"].integer(),
        contrastive=model["contrastive"].boolean(),
        parameters=model["parameters"].integer(),
        checkpoint_sha256=model["checkpoint_sha256"].sha256(),
    )


def _read_tensor(tensor: _Field) -> TensorSpec:
    def dimension(field: _Field) -> int | str:
        return field.text() if isinstance(field.value, str) else field.integer(1)

    return TensorSpec(
        tensor["name"].text(), tensor["dtype"].one_of(DType), tensor["shape"].each(dimension)
    )


def _read_parity(parity: _Field) -> Parity:
    return Parity(
        min_iou=parity["min_iou"].number(0, 1),
        mean_iou=parity["mean_iou"].number(0, 1),
        worst_iou=parity["worst_iou"].number(0, 1),
        max_logit_error=parity["max_logit_error"].number(0, sys.float_info.max),
        passed=parity["passed"].boolean(),
    )
