"""What a plan's sidecar says: which runtime, GPU and graph it is for, and its hashes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final, TypeAlias

from msgspec import Meta

from cris_deploy import documents
from cris_deploy.bundle.manifest import GraphName, Magnitude, Precision
from cris_deploy.documents import Count, Positive, Sha256
from cris_deploy.errors import BackendError, InputError

FORMAT: Final = 1
"""Version of the sidecar's schema that this package writes, and the newest that it reads."""
SUFFIX: Final = ".plan"
SIDECAR: Final = ".json"
REBUILD: Final = "build it again with cris-export build BUNDLE --engine ENGINE"

PlanName: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[^/\\:\0]*\.plan\Z",
        description=f"the name of a {SUFFIX} file without a folder",
    ),
]
Capability: TypeAlias = Annotated[
    str, Meta(pattern=r"^sm[1-9]\d+\Z", description="a compute capability such as sm86")
]


class RuntimeName(StrEnum):
    """Runtimes that load plans.

    Not `BackendName`, which has backends without plans: these are the words in files' names and in
    sidecars, where any other is refused, and a bundle knows nothing of what runs it.
    """

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The shapes an input may have: `min` to `max` in every dimension, kernels chosen at `opt`."""

    min: tuple[Positive, ...]
    opt: tuple[Positive, ...]
    max: tuple[Positive, ...]

    def __post_init__(self) -> None:
        if not (len(self.min) == len(self.max) and self.holds(self.opt)):
            raise InputError(
                f"min {self.min}, opt {self.opt} and max {self.max} are not of one length, in that "
                "order of size"
            )

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a shape lies in the range."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """An optimisation profile: the range of each input."""

    inputs: Mapping[str, ShapeRange]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """What a sidecar says of its plan. Hashes are SHA-256 in lower-case hexadecimal.

    file: name within `engines/`.
    version: of the runtime, exact.
    targets: compute capabilities ("sm86") it was built for; tensorrt's is that of `gpu`.
    gpu: name of the GPU it was built on; None for a plan that was built without one.
    graph_sha256, weights_sha256: the graph it was built from, and the weights beside that.
    profiles: in the order that the runtime numbers them.
    built: UTC, ISO 8601.
    layers, products: of the network it was built from, element type -> layers whose result has it,
        and the convolutions and matrix products among them; what was typed float16 shows here.
    kernels: of the plan itself, element type -> kernels that compute in it; {} if the builder did
        not list them.
    """

    format: Positive = FORMAT
    file: PlanName
    graph: GraphName
    runtime: RuntimeName
    version: str
    targets: Annotated[
        tuple[Capability, ...], Meta(min_length=1, description="at least one compute capability")
    ]
    gpu: str | None
    graph_sha256: Sha256
    weights_sha256: Sha256
    precision: Precision
    profiles: Annotated[tuple[Profile, ...], Meta(min_length=1, description="at least one profile")]
    plan_sha256: Sha256
    plan_bytes: Positive
    built: str
    build_seconds: Magnitude
    version_compatible: bool
    hardware_compatible: bool
    layers: Mapping[str, Count]
    products: Mapping[str, Count]
    kernels: Mapping[str, Count] = field(default_factory=dict)

    def to_json(self) -> str:
        """Write as the text of a sidecar."""
        return documents.to_json(self)

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "PlanRecord":
        """Read the text of a sidecar; BackendError names `where`, the field and the remedy."""
        return documents.read(cls, text, where, newest=FORMAT, remedy=REBUILD, error=BackendError)

    def profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """Give the number of the first profile that holds all inputs' shapes; None if none does.

        A profile of an input that is not among them holds nothing.
        """
        for index, profile in enumerate(self.profiles):
            if all(held.holds(shapes.get(name, ())) for name, held in profile.inputs.items()):
                return index
        return None


def plan_name(graph: GraphName, runtime: RuntimeName, targets: tuple[str, ...]) -> str:
    """Name a plan's file: `<graph>.<runtime>.<targets>.plan`."""
    return f"{graph}.{runtime}.{'-'.join(targets)}{SUFFIX}"
