"""The bundle's manifest: its schema as frozen dataclasses, read with checks, written as JSON.

Reading names the field that is wrong; keys that this version does not know are ignored, so that a
format number has to change only when old readers would go wrong.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final, TypeAlias

from msgspec import Meta

from cris_deploy import documents
from cris_deploy.documents import Count, Positive, Sha256, Share
from cris_deploy.errors import BundleError, InputError

FORMAT: Final = 1
"""Version of the bundle format that this package writes, and the newest that it reads."""
DEFAULT_MIN_IOU: Final = 0.99
"""Least mean mask IoU against FP32 PyTorch, where nobody names one."""

# What a bundle may claim: a runtime makes room for it before it sees whether it is true. All are
# far above what is exported, and low enough for what follows from them to fit into memory.
MOST_BYTES: Final = 16 * 2**20
"""Length of manifest.json; that of a full-size model takes 12 KB, and half a KB for each
further sample."""
MOST_SIDE: Final = 4096
"""Side of the input and of the logits, where the published models have 416 and 104: a normalised
input takes 200 MB."""
MOST_TOKENS: Final = 77
"""Tokens of an expression: CLIP's text transformer has no more positions."""
MOST_DIMENSIONS: Final = 8
MOST_ELEMENTS: Final = 2**28
"""Elements of a tensor for one image and one expression: 1 GB of float32."""
MOST_TENSORS: Final = 64
MOST_SAMPLES: Final = 20_000
MOST_SAMPLE_PIXELS: Final = 100_000_000
"""Pixels of a sample's image: what an engine decodes, `image.MAX_PIXELS`."""

_REMEDY: Final = "export the bundle again"

FileName: TypeAlias = Annotated[
    str,
    # No part between slashes is empty, "." or ".."; no drive, no backslash, no NUL.
    Meta(
        pattern=r"^(?!(?:[^\0]*/)?\.{0,2}(?:/|\Z))[^\\:\0]+\Z",
        description="a relative path inside the bundle",
    ),
]
"""A name that stays inside the bundle on every system."""
Magnitude: TypeAlias = Annotated[float, Meta(ge=0)]
_Side: TypeAlias = Annotated[int, Meta(ge=1, le=MOST_SIDE)]
_SampleSide: TypeAlias = Annotated[int, Meta(ge=1, le=MOST_SAMPLE_PIXELS)]
_Dimension: TypeAlias = Annotated[int, Meta(ge=1, le=MOST_ELEMENTS)]
_Tensors: TypeAlias = Annotated[tuple["TensorSpec", ...], Meta(max_length=MOST_TENSORS)]


class GraphName(StrEnum):
    """The graphs of a bundle: the whole model, and its three stages."""

    FULL = "full"
    IMAGE_ENCODER = "image_encoder"
    TEXT_ENCODER = "text_encoder"
    MASK_DECODER = "mask_decoder"


STAGES: Final = (GraphName.IMAGE_ENCODER, GraphName.TEXT_ENCODER, GraphName.MASK_DECODER)
"""In the order in which an image and an expression go through them."""


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


class NumberType(StrEnum):
    """What a graph computes with and stores its weights in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a graph; a str in `shape` is a dimension chosen at run time."""

    name: str
    dtype: DType
    shape: Annotated[tuple[_Dimension | str, ...], Meta(max_length=MOST_DIMENSIONS)]

    def __post_init__(self) -> None:
        if math.prod(size for size in self.shape if isinstance(size, int)) > MOST_ELEMENTS:
            shape = ", ".join(map(str, self.shape))
            raise InputError(f"shape is [{shape}], expected at most {MOST_ELEMENTS:,} elements")


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One ONNX file of the bundle and its interface."""

    file: FileName
    inputs: _Tensors
    outputs: _Tensors


@dataclass(frozen=True, slots=True)
class TypeShare:
    """How much of a graph has which type; a type that does not occur is left out.

    `nodes` counts nodes with float results by their type, `weight_bytes` what is stored,
    `multiply_adds` those of convolutions and matrix products for one image and one expression;
    an int8 product is one whose inputs both come from a DequantizeLinear. `conversions` counts
    Cast, QuantizeLinear and DequantizeLinear nodes, which are in no other count. `islands` names
    the nodes of a float16 graph that compute in float32, and the rule that wants it.
    """

    nodes: Mapping[NumberType, Count]
    weight_bytes: Mapping[NumberType, Count]
    multiply_adds: Mapping[NumberType, Count]
    conversions: Count
    islands: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the checkpoint is; the runtime needs the sizes, the word length and the threshold."""

    architecture: str
    input_size: _Side
    mask_size: _Side
    word_len: Annotated[int, Meta(ge=3, le=MOST_TOKENS)]
    context_length: Annotated[int, Meta(ge=3)]
    threshold: Share
    decoder_layers: Count
    contrastive: bool
    parameters: Count
    checkpoint_sha256: Sha256


@dataclass(frozen=True, slots=True)
class Sample:
    """An image (`height` x `width` pixels), an expression, and the FP32 model's logits (npy).

    `scene` and `text` are the FP32 outputs of the image and text encoder (npz), for a few samples.
    """

    image: FileName
    expression: str
    logits: FileName
    height: _SampleSide
    width: _SampleSide
    scene: FileName | None = None
    text: FileName | None = None

    def __post_init__(self) -> None:
        if self.height * self.width > MOST_SAMPLE_PIXELS:
            raise InputError(
                f"height is {self.height}, expected at most {MOST_SAMPLE_PIXELS:,} pixels with the "
                f"width, {self.width}"
            )


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How an int8 bundle was made.

    `weight_levels` is the largest magnitude of an integer that a layer multiplies. `correlation` is
    the least of int8 with float32 logits over the calibration pairs that were judged,
    `min_correlation` the budget for it. Bundles of earlier versions lack this and have 127 levels.
    """

    weight_levels: Positive
    correlation: Annotated[float, Meta(ge=-1, le=1)]
    min_correlation: Share


class Route(StrEnum):
    """Ways through a bundle: stage by stage, as an engine goes, or the full graph at once."""

    STAGES = "stages"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class RouteParity:
    """A route from image to mask: mask IoU, and the largest absolute logit error.

    The mean IoU is over samples where something can be seen. Relative errors are the root mean
    square of the difference over the standard deviation of a sample's logits in FP32 PyTorch.
    Here and below an error is None where NaN or infinity came out, or an older version did not
    look.
    """

    route: Route
    mean_iou: Share
    worst_iou: Share
    max_logit_error: Magnitude | None
    worst_relative_error: Magnitude | None = None
    mean_relative_error: Magnitude | None = None


@dataclass(frozen=True, slots=True)
class StageParity:
    """One stage by itself, on the very inputs that FP32 PyTorch has there.

    `relative_error` is the root mean square of the difference over that of the reference, of the
    worst output; `max_error` the largest absolute difference; `logit_error` the relative error of
    the logits that comes from this stage alone. The worst sample counts.
    """

    stage: GraphName
    relative_error: Magnitude | None
    max_error: Magnitude | None
    logit_error: Magnitude | None


@dataclass(frozen=True, slots=True)
class Proof:
    """What one backend gave. Names are plain text: a newer version may know more of them.

    `required` if the export depended on it; `problem` says in one sentence what failed;
    `logit_budget` is what the worst relative error was held to; `instructions` the vector
    extensions of the CPU that it ran on, None on a GPU.
    """

    backend: str
    version: str
    device: str
    compute: str
    required: bool
    routes: tuple[RouteParity, ...]
    stages: tuple[StageParity, ...]
    problem: str | None
    logit_budget: Magnitude | None = None
    instructions: str | None = None


@dataclass(frozen=True, slots=True)
class Parity:
    """Exported graphs against FP32 PyTorch on the samples: the worst of all required proofs.

    `min_iou` and `logit_budgets` are the budgets, the latter of the worst relative error by the
    arithmetic that runs. `visible_share` is the share of samples whose mask is neither empty nor
    full in FP32 PyTorch. `unproved` names what was installed and failed to run, and why.
    """

    min_iou: Share
    mean_iou: Share
    worst_iou: Share
    max_logit_error: Magnitude | None
    passed: bool
    proofs: tuple[Proof, ...] = ()
    logit_budgets: Mapping[str, Magnitude] = field(default_factory=dict)
    worst_relative_error: Magnitude | None = None
    mean_relative_error: Magnitude | None = None
    visible_share: Share | None = None
    unproved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Hash and size of a file of the bundle."""

    sha256: Sha256
    bytes: Count


@dataclass(frozen=True, slots=True)
class PlanFile:
    """Hash and size of a plan, and the hash of its sidecar."""

    sha256: Sha256
    bytes: Positive
    sidecar_sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a bundle says about itself. `files` covers all files but the manifest and plans.

    `plans` says which plans, by their names in `engines/`, were built for this bundle; any of them
    may be missing. `weights` has the SHA-256 of every weight's bytes, by stage and name: it says
    which layer a changed file hits. File names are relative POSIX paths inside the bundle.
    `created` is UTC, ISO 8601.
    """

    format: Positive = FORMAT
    model: ModelFacts
    precision: Precision
    opset: Positive
    graphs: Mapping[GraphName, GraphSpec]
    types: Mapping[GraphName, TypeShare]
    versions: Mapping[str, str]
    samples: Annotated[tuple[Sample, ...], Meta(max_length=MOST_SAMPLES)]
    parity: Parity | None
    created: str
    files: Mapping[FileName, FileRecord]
    quantisation: Quantisation | None = None
    weights: Mapping[GraphName, Mapping[str, Sha256]] = field(default_factory=dict)
    plans: Mapping[FileName, PlanFile] = field(default_factory=dict)

    @property
    def weight_levels(self) -> int:
        """Largest magnitude of the integers that layers multiply; 0 where none does."""
        if self.precision is not Precision.INT8:
            return 0
        return 127 if self.quantisation is None else self.quantisation.weight_levels

    def to_json(self) -> str:
        """Write as the text of manifest.json."""
        return documents.to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "Manifest":
        """Read the text of a manifest.json; BundleError names `where` and the field."""
        if len(text) > MOST_BYTES:
            raise BundleError(
                f"{where} is longer than {MOST_BYTES:,} bytes, which no manifest is: {_REMEDY}"
            )
        document = documents.read(dict[str, Any], text, where, newest=FORMAT, remedy=_REMEDY)
        known = set(GraphName)  # a later version may have more graphs
        for part in ("graphs", "types"):
            found = document.get(part)
            if isinstance(found, dict):
                document[part] = {name: found[name] for name in found if name in known}
        manifest = documents.convert(
            cls, document, where, remedy=_REMEDY, error=BundleError, known_only=False
        )
        problem = _problem(manifest)
        if problem is not None:
            raise BundleError(f"{where}: {problem}: {_REMEDY}")
        return manifest


def _problem(manifest: Manifest) -> str | None:
    """What no field says by itself: all graphs are there, and `files` lists what others name.

    Not in `__post_init__`, since an export has a manifest before it has all files.
    """
    for part in ("graphs", "types"):
        for graph in GraphName:
            if graph not in getattr(manifest, part):
                return f"{part}['{graph}'] is missing"
    named = {f"graphs['{graph}'].file": spec.file for graph, spec in manifest.graphs.items()}
    for index, sample in enumerate(manifest.samples):
        for field_name in ("image", "logits", "scene", "text"):
            named[f"samples[{index}].{field_name}"] = getattr(sample, field_name)
    for place, file in named.items():
        if file is not None and file not in manifest.files:
            return f"{place} is {json.dumps(file)}, expected a file that 'files' lists"
    return None
