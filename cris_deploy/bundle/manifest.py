"""The bundle's manifest: its schema as frozen dataclasses, read with checks, written as JSON.

Reading names the field that is wrong; keys that this version does not know are ignored, so that a
format number has to change only when old readers would go wrong.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cris_deploy.bundle.fields import Field
from cris_deploy.errors import BundleError

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
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One ONNX file of the bundle and its interface."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class TypeShare:
    """How much of a graph has which type; a type that does not occur is left out.

    `nodes` counts nodes with float results by their type, `weight_bytes` what is stored,
    `multiply_adds` those of convolutions and matrix products for one image and one expression;
    an int8 product is one whose inputs both come from a DequantizeLinear. `conversions` counts
    Cast, QuantizeLinear and DequantizeLinear nodes, which are in no other count. `islands` names
    the nodes of a float16 graph that compute in float32, and the rule that wants it.
    """

    nodes: Mapping[NumberType, int]
    weight_bytes: Mapping[NumberType, int]
    multiply_adds: Mapping[NumberType, int]
    conversions: int
    islands: Mapping[str, str]


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
    """An image (`height` x `width` pixels), an expression, and the FP32 model's logits (npy).

    `scene` and `text` are the FP32 outputs of the image and text encoder (npz), for a few samples.
    """

    image: str
    expression: str
    logits: str
    height: int
    width: int
    scene: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How an int8 bundle was made.

    `weight_levels` is the largest magnitude of an integer that a layer multiplies. `correlation` is
    the least of int8 with float32 logits over the calibration pairs that were judged,
    `min_correlation` the budget for it. Bundles of earlier versions lack this and have 127 levels.
    """

    weight_levels: int
    correlation: float
    min_correlation: float


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
    mean_iou: float
    worst_iou: float
    max_logit_error: float | None
    worst_relative_error: float | None = None
    mean_relative_error: float | None = None


@dataclass(frozen=True, slots=True)
class StageParity:
    """One stage by itself, on the very inputs that FP32 PyTorch has there.

    `relative_error` is the root mean square of the difference over that of the reference, of the
    worst output; `max_error` the largest absolute difference; `logit_error` the relative error of
    the logits that comes from this stage alone. The worst sample counts.
    """

    stage: GraphName
    relative_error: float | None
    max_error: float | None
    logit_error: float | None


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
    logit_budget: float | None = None
    instructions: str | None = None


@dataclass(frozen=True, slots=True)
class Parity:
    """Exported graphs against FP32 PyTorch on the samples: the worst of all required proofs.

    `min_iou` and `logit_budgets` are the budgets, the latter of the worst relative error by the
    arithmetic that runs. `visible_share` is the share of samples whose mask is neither empty nor
    full in FP32 PyTorch. `unproved` names what was installed and failed to run, and why.
    """

    min_iou: float
    mean_iou: float
    worst_iou: float
    max_logit_error: float | None
    passed: bool
    proofs: tuple[Proof, ...] = ()
    logit_budgets: Mapping[str, float] = field(default_factory=dict)
    worst_relative_error: float | None = None
    mean_relative_error: float | None = None
    visible_share: float | None = None
    unproved: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Hash and size of a file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class PlanFile:
    """Hash and size of a plan, and the hash of its sidecar."""

    sha256: str
    bytes: int
    sidecar_sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything a bundle says about itself. `files` covers all files but the manifest and plans.

    `plans` says which plans, by their names in `engines/`, were built for this bundle; any of them
    may be missing. `weights` has the SHA-256 of every weight's bytes, by stage and name: it says
    which layer a changed file hits. File names are relative POSIX paths inside the bundle.
    `created` is UTC, ISO 8601.
    """

    model: ModelFacts
    precision: Precision
    opset: int
    graphs: Mapping[GraphName, GraphSpec]
    types: Mapping[GraphName, TypeShare]
    versions: Mapping[str, str]
    samples: tuple[Sample, ...]
    parity: Parity | None
    created: str
    files: Mapping[str, FileRecord]
    quantisation: Quantisation | None = None
    weights: Mapping[GraphName, Mapping[str, str]] = field(default_factory=dict)
    format: int = FORMAT
    plans: Mapping[str, PlanFile] = field(default_factory=dict)

    @property
    def weight_levels(self) -> int:
        """Largest magnitude of the integers that layers multiply; 0 where none does."""
        if self.precision is not Precision.INT8:
            return 0
        return 127 if self.quantisation is None else self.quantisation.weight_levels

    def to_json(self) -> str:
        """Write as the text of manifest.json."""
        document = dataclasses.asdict(self)
        document = {"format": self.format, **document}
        return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "Manifest":
        """Read the text of a manifest.json; BundleError names `where` and the field."""
        if len(text) > MOST_BYTES:
            raise BundleError(
                f"{where} is longer than {MOST_BYTES:,} bytes, which no manifest is: export the "
                "bundle again"
            )
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"{where} is not valid JSON ({error}): export the bundle again"
            ) from None
        return _read_manifest(Field(document, where, ""))


def _read_manifest(root: Field) -> Manifest:
    version = root["format"].integer(1)
    if version > FORMAT:
        raise BundleError(
            f"{root.where}: the bundle has format {version}, this cris-deploy reads up to "
            f"{FORMAT}: upgrade cris-deploy (pip install -U cris-deploy)"
        )
    files = {
        Field(name, root.where, "files").file_name(): FileRecord(
            record["sha256"].sha256(), record["bytes"].integer()
        )
        for name, record in root["files"].items()
    }

    def sample(field: Field) -> Sample:
        height, width = (field[side].integer(1, MOST_SAMPLE_PIXELS) for side in ("height", "width"))
        if height * width > MOST_SAMPLE_PIXELS:
            raise field["height"].wrong(f"at most {MOST_SAMPLE_PIXELS:,} pixels with the width")
        return Sample(
            listed(field["image"]),
            field["expression"].text(),
            listed(field["logits"]),
            height,
            width,
            field.optional("scene", listed),
            field.optional("text", listed),
        )

    def listed(field: Field) -> str:
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
                root["graphs"][name]["inputs"].each(_read_tensor, MOST_TENSORS),
                root["graphs"][name]["outputs"].each(_read_tensor, MOST_TENSORS),
            )
            for name in GraphName
        },
        types={name: _read_share(root["types"][name]) for name in GraphName},
        versions={name: version.text() for name, version in root["versions"].items()},
        samples=root["samples"].each(sample, MOST_SAMPLES),
        parity=None if parity.value is None else _read_parity(parity),
        created=root["created"].text(),
        files=files,
        quantisation=root.optional("quantisation", _read_quantisation),
        weights=root.optional("weights", _read_weights) or {},
        plans=root.optional("plans", _read_plans) or {},
    )


def _read_plans(plans: Field) -> dict[str, PlanFile]:
    return {
        Field(name, plans.where, plans.path).file_name(): PlanFile(
            plan["sha256"].sha256(), plan["bytes"].integer(1), plan["sidecar_sha256"].sha256()
        )
        for name, plan in plans.items()
    }


def _read_weights(weights: Field) -> dict[GraphName, dict[str, str]]:
    return {
        Field(name, weights.where, weights.path).one_of(GraphName): {
            tensor: digest.sha256() for tensor, digest in digests.items()
        }
        for name, digests in weights.items()
    }


def _read_model(model: Field) -> ModelFacts:
    return ModelFacts(
        architecture=model["architecture"].text(),
        input_size=model["input_size"].integer(1, MOST_SIDE),
        mask_size=model["mask_size"].integer(1, MOST_SIDE),
        word_len=model["word_len"].integer(3, MOST_TOKENS),
        context_length=model["context_length"].integer(3),
        threshold=model["threshold"].number(0, 1),
        decoder_layers=model["decoder_layers"].integer(),
        contrastive=model["contrastive"].boolean(),
        parameters=model["parameters"].integer(),
        checkpoint_sha256=model["checkpoint_sha256"].sha256(),
    )


def _read_tensor(tensor: Field) -> TensorSpec:
    def dimension(field: Field) -> int | str:
        return field.text() if isinstance(field.value, str) else field.integer(1, MOST_ELEMENTS)

    shape = tensor["shape"].each(dimension, MOST_DIMENSIONS)
    if math.prod(size for size in shape if isinstance(size, int)) > MOST_ELEMENTS:
        raise tensor["shape"].wrong(f"at most {MOST_ELEMENTS:,} elements")
    return TensorSpec(tensor["name"].text(), tensor["dtype"].one_of(DType), shape)


def _read_share(share: Field) -> TypeShare:
    def counts(field: Field) -> dict[NumberType, int]:
        return {
            Field(name, field.where, field.path).one_of(NumberType): count.integer()
            for name, count in field.items()
        }

    return TypeShare(
        nodes=counts(share["nodes"]),
        weight_bytes=counts(share["weight_bytes"]),
        multiply_adds=counts(share["multiply_adds"]),
        conversions=share["conversions"].integer(),
        islands={node: rule.text() for node, rule in share["islands"].items()},
    )


def _read_quantisation(quantisation: Field) -> Quantisation:
    return Quantisation(
        weight_levels=quantisation["weight_levels"].integer(1),
        correlation=quantisation["correlation"].number(-1, 1),
        min_correlation=quantisation["min_correlation"].number(0, 1),
    )


def _read_parity(parity: Field) -> Parity:
    return Parity(
        min_iou=parity["min_iou"].number(0, 1),
        mean_iou=parity["mean_iou"].number(0, 1),
        worst_iou=parity["worst_iou"].number(0, 1),
        max_logit_error=parity.optional("max_logit_error", _read_error),
        passed=parity["passed"].boolean(),
        proofs=parity.optional("proofs", lambda proofs: proofs.each(_read_proof)) or (),
        logit_budgets=parity.optional("logit_budgets", _read_budgets) or {},
        worst_relative_error=parity.optional("worst_relative_error", _read_error),
        mean_relative_error=parity.optional("mean_relative_error", _read_error),
        visible_share=parity.optional("visible_share", lambda share: share.number(0, 1)),
        unproved=parity.optional("unproved", lambda reasons: reasons.each(Field.text)) or (),
    )


def _read_budgets(budgets: Field) -> dict[str, float]:
    return {compute: _read_error(budget) for compute, budget in budgets.items()}


def _read_proof(proof: Field) -> Proof:
    return Proof(
        backend=proof["backend"].text(),
        version=proof["version"].text(),
        device=proof["device"].text(),
        compute=proof["compute"].text(),
        required=proof["required"].boolean(),
        routes=proof["routes"].each(
            lambda route: RouteParity(
                route["route"].one_of(Route),
                route["mean_iou"].number(0, 1),
                route["worst_iou"].number(0, 1),
                route.optional("max_logit_error", _read_error),
                route.optional("worst_relative_error", _read_error),
                route.optional("mean_relative_error", _read_error),
            )
        ),
        stages=proof["stages"].each(
            lambda stage: StageParity(
                stage["stage"].one_of(GraphName),
                stage.optional("relative_error", _read_error),
                stage.optional("max_error", _read_error),
                stage.optional("logit_error", _read_error),
            )
        ),
        problem=proof.optional("problem", Field.text),
        logit_budget=proof.optional("logit_budget", _read_error),
        instructions=proof.optional("instructions", Field.text),
    )


def _read_error(error: Field) -> float:
    return error.number(0, sys.float_info.max)
