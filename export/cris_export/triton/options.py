"""What a model repository is to hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from cris_deploy import arguments
from cris_deploy.errors import InputError
from cris_deploy.serving.triton import ModelSettings


class StageKind(StrEnum):
    """What runs the three stages as models of their own."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    NONE = "none"


@dataclass(frozen=True)
class RepositoryOptions:
    """What a model repository is to hold.

    Attributes:
        stages: The three stages and their ensemble as models of their own, or none.
        gpus: Numbers of the GPUs that each have instances; () for the CPU.
        instances: Of each model, per GPU or on the CPU.
        max_batch: Requests in one call of a model.
        waiting: Requests that may wait for a model; Triton refuses more.
        strings: Offer expressions as BYTES, too; see `cris_deploy.serving.triton`.
        settings: Of the engine in the model `cris`.
    """

    stages: StageKind = StageKind.ONNXRUNTIME
    gpus: tuple[int, ...] = ()
    instances: int = 1
    max_batch: int = 8
    waiting: int = 128
    strings: bool = False
    settings: ModelSettings = field(default_factory=ModelSettings)

    def __post_init__(self) -> None:
        for flag, value, most in (
            ("--instances", self.instances, 64),
            ("--max-batch", self.max_batch, 1024),
            ("--waiting", self.waiting, 2**20),
        ):
            arguments.whole(flag, value, 1, most)
        if len(set(self.gpus)) < len(self.gpus):
            raise InputError("--gpus names a GPU twice: use --instances for more on each")
        if self.stages is StageKind.TENSORRT and not self.gpus:
            raise InputError("--stages tensorrt needs GPUs: name them, such as --gpus 0")
